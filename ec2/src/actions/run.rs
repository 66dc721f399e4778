//! `RunInstances`.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use instance::Record;
use instance::images::image::Image;
use instance::process::launch::VolumeRequest;
use instance::service::{DescribeInstances, RunInstances};
use instance::store::id::ReservationId;
use instance::store::network::{Port, Protocol, public_address};
use instance::store::record::Config;
use machine::entropy;

use super::describe;
use super::shown::{self, Shown};
use super::{groups, images, places, tags, terminate};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::ledger::LaunchOf;
use crate::query::Params;
use crate::time;
use crate::types::InstanceType;
use crate::xml::Element;

/// Parameters that do not change what is asked for.
const NOT_COMPARED: &[&str] = &["ClientToken"];

/// Launches instances, and returns when their guests run.
pub fn run(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let id = images::check_id(params.required("ImageId")?)?;
    images::check_stored(api, id)?;
    let image = api.service.open_image(id)?;
    let least = required_count(params, "MinCount")?;
    let most = required_count(params, "MaxCount")?;
    if least > most {
        return Err(Error::InvalidCombination(
            "MinCount must not be more than MaxCount",
        ));
    }
    let request = request(api, params, &image, most)?;
    let token = params.text("ClientToken");
    match params.finish() {
        Err(Error::DryRun) => {
            api.service.check_launch(&request)?;
            return Err(Error::DryRun);
        }
        finished => finished?,
    }
    match token {
        Some(token) => once(api, params, request, least, token),
        None => launch(api, &request, least),
    }
}

fn required_count(params: &Params, name: &str) -> Result<u32> {
    let count = params.number(name, 1..=1000)?;
    count
        .map(|count| count as u32)
        .ok_or_else(|| Error::MissingParameter(name.into()))
}

fn request(api: &Api, params: &Params, image: &Image, count: u32) -> Result<RunInstances> {
    places::check_placement(params)?;
    for off in [
        "Monitoring.Enabled",
        "EbsOptimized",
        "DisableApiTermination",
        "DisableApiStop",
        "HibernationOptions.Configured",
    ] {
        if params.flag(off)? {
            return Err(Error::Unsupported(format!("the option {off}")));
        }
    }
    const BEHAVIOR: &str = "InstanceInitiatedShutdownBehavior";
    let behavior = params.text(BEHAVIOR);
    let auto_remove = behavior.map(|value| removes(BEHAVIOR, value)).transpose()?;
    let (root_size, volumes) = volumes(params, image)?;
    let (security_groups, open) = groups::of_launch(api, params)?;
    let mut config = Config {
        ssh_keys: keys(api, params)?,
        ports: open
            .into_iter()
            .map(|(protocol, guest)| unplaced(protocol, guest))
            .collect(),
        security_groups,
        ..Config::default()
    };
    if let Some(size) = size(params, image)? {
        config.cpus = Some(size.vcpus);
        config.memory = Some(size.memory << 20);
        config.instance_type = Some(size.name.to_owned());
    }
    Ok(RunInstances {
        count,
        tags: tags::specified(params, "instance")?,
        config,
        root_size,
        volumes,
        auto_remove: auto_remove.unwrap_or(false),
        user_data: params.text("UserData").map(user_data).transpose()?,
        reservation: Some(ReservationId::random()),
        ..RunInstances::of(image.id())
    })
}

/// The instance type, if one is named: without, the machine is as the image has it.
fn size(params: &Params, image: &Image) -> Result<Option<&'static InstanceType>> {
    let name = params.text("InstanceType");
    let architecture = image.manifest().architecture.to_string();
    name.map(|name| fitting(name, &architecture)).transpose()
}

/// The instance type of that name, which is of the architecture and fits this host.
pub fn fitting(name: &str, architecture: &str) -> Result<&'static InstanceType> {
    let size = InstanceType::named(name)
        .ok_or_else(|| Error::value("InstanceType", name, "see DescribeInstanceTypes"))?;
    if architecture != size.architecture() {
        let why = format!("the image is for {architecture}");
        return Err(Error::value("InstanceType", name, why));
    }
    match host_memory() {
        Some(host) if size.memory > host => Err(Error::Capacity {
            name: name.to_owned(),
            memory: size.memory,
            host,
        }),
        _ => Ok(size),
    }
}

/// MiB of memory of this host.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib >> 10)
}

fn keys(api: &Api, params: &Params) -> Result<Vec<String>> {
    let Some(name) = params.text("KeyName") else {
        return Ok(Vec::new());
    };
    let pair = api
        .ledger
        .key_pair(name)?
        .ok_or_else(|| Error::NoKeyPair(name.to_owned()))?;
    // The comment is the name of the key in the metadata.
    Ok(vec![format!("{} {name}", pair.public_key)])
}

/// Whether an instance with this shutdown behaviour, the value of `parameter`, is removed when it stops.
pub fn removes(parameter: &str, behavior: &str) -> Result<bool> {
    match behavior {
        "stop" => Ok(false),
        "terminate" => Ok(true),
        other => Err(Error::value(parameter, other, "stop or terminate")),
    }
}

/// User data, which requests give as base64.
pub fn user_data(text: &str) -> Result<Vec<u8>> {
    STANDARD
        .decode(text)
        .map_err(|_| Error::value("UserData", "…", "base64"))
}

/// The size of the root volume and the volumes besides, from the block device mappings.
fn volumes(params: &Params, image: &Image) -> Result<(Option<u64>, Vec<VolumeRequest>)> {
    let root = &image.manifest().root_device;
    let mapped = image
        .manifest()
        .block_device_mappings
        .iter()
        .filter(|mapping| mapping.device != *root);
    let mut place = 1 + mapped.count();
    let (mut root_size, mut volumes) = (None, Vec::new());
    for mapping in params.places("BlockDeviceMapping") {
        let field = |name: &str| format!("{mapping}.{name}");
        let device = params.required(&field("DeviceName"))?;
        let gib = params.number(&field("Ebs.VolumeSize"), 1..=16_384)?;
        let delete = params.boolean(&field("Ebs.DeleteOnTermination"))?.unwrap_or(true);
        params.text(&field("Ebs.VolumeType"));
        if params.flag(&field("Ebs.Encrypted"))? {
            return Err(Error::Unsupported("an encrypted volume".into()));
        }
        if device == root {
            if !delete {
                return Err(Error::Unsupported(
                    "a root volume that outlives its instance".into(),
                ));
            }
            root_size = gib.map(|gib| gib << 30);
            continue;
        }
        let named = format!("/dev/vd{}", char::from(b'a' + (place % 26) as u8));
        if device != named {
            return Err(Error::value(
                field("DeviceName"),
                device,
                format!("{named}: devices are named in their order"),
            ));
        }
        let gib = gib.ok_or_else(|| Error::MissingParameter(field("Ebs.VolumeSize")))?;
        let text = format!("{gib}G{}", if delete { "" } else { ",keep" });
        let volume = text
            .parse()
            .map_err(|why: String| Error::value(field("Ebs.VolumeSize"), gib.to_string(), why))?;
        volumes.push(volume);
        place += 1;
    }
    Ok((root_size, volumes))
}

/// Launches what was not launched with the same token before. The launch is written down before there is an
/// instance of it, so that whoever asks again finds its instances, whatever became of the first request.
fn once(
    api: &Arc<Api>,
    params: &Params,
    mut request: RunInstances,
    least: u32,
    token: &str,
) -> Result<Vec<Element>> {
    let asked = params.canonical(NOT_COMPARED);
    let asked = describe::digest(&asked);
    let (held, known) = api.ledger.lock_launch(token)?;
    if let Some(known) = known {
        if known.request != asked {
            return Err(Error::TokenMismatch);
        }
        let shown = of_reservation(api, &known.reservation)?;
        if !shown.is_empty() {
            return Ok(describe::reservation(known.reservation.as_str(), &shown).into());
        }
        request.reservation = Some(known.reservation);
    } else if let Some(reservation) = &request.reservation {
        held.put(&LaunchOf {
            request: asked,
            reservation: reservation.clone(),
            at: time::now(),
        })?;
    }
    launch(api, &request, least)
}

fn of_reservation(api: &Api, reservation: &ReservationId) -> Result<Vec<Shown>> {
    let mut all = shown::all(api)?;
    all.retain(|instance| instance.record.reservation == *reservation);
    Ok(all)
}

/// Launches `least` instances or more; fewer are terminated again.
fn launch(api: &Arc<Api>, request: &RunInstances, least: u32) -> Result<Vec<Element>> {
    let mut ids = Vec::new();
    let mut failed = None;
    for first_index in 0..request.count {
        match launch_one(api, request, first_index) {
            Ok(launched) => ids.extend(launched),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if let Some(error) = failed {
        if (ids.len() as u32) < least {
            ids.into_iter().for_each(|id| terminate::remove(api, id));
            return Err(error);
        }
        tracing::warn!(%error, launched = ids.len(), "not all instances were launched");
    }
    let mut shown = Vec::new();
    for id in &ids {
        match shown::named(api, &[id]) {
            Ok(found) => shown.extend(found),
            // It has ended and is removed when it stops.
            Err(Error::NoInstance(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let id = request
        .reservation
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    Ok(describe::reservation(&id, &shown).into())
}

/// Launches the instance of that place in the launch. One whose ports are open has an address of its own.
fn launch_one(api: &Api, request: &RunInstances, first_index: u32) -> Result<Vec<String>> {
    let mut request = RunInstances {
        count: 1,
        first_index,
        ..request.clone()
    };
    if !request.config.ports.is_empty() {
        let address = unused_address(api)?;
        for port in &mut request.config.ports {
            port.address = address.into();
            port.host = host_port(address, port.guest);
        }
    }
    let launched = api.service.launch_instances(&request)?;
    launched.map(|launched| Ok(launched?.id.to_string())).collect()
}

/// A port that is given its address at the launch.
fn unplaced(protocol: Protocol, guest: u16) -> Port {
    Port {
        address: Ipv4Addr::LOCALHOST.into(),
        host: 0,
        guest,
        protocol,
    }
}

/// A public address that no instance has.
fn unused_address(api: &Api) -> Result<Ipv4Addr> {
    let described = api.service.describe_instances(&DescribeInstances::default())?;
    let taken: Vec<_> = described
        .records
        .iter()
        .filter_map(Record::public_address)
        .collect();
    // There are four million.
    let mut any = std::iter::repeat_with(|| public_address(u32::from_le_bytes(entropy::bytes())));
    let free = any
        .by_ref()
        .take(taken.len() + 100)
        .find(|address| !taken.contains(address));
    free.ok_or_else(|| Error::Unsupported("one more public address".into()))
}

/// The port of this host for one of the guest: the same where the host lets this program have it, and 8000
/// more where it does not, for ports below 1024 and those that another program has on all addresses.
fn host_port(address: Ipv4Addr, guest: u16) -> u16 {
    const ELSEWHERE: u16 = 8000;
    match TcpListener::bind((address, guest)) {
        Ok(_) => guest,
        Err(_) => guest.checked_add(ELSEWHERE).unwrap_or(0),
    }
}
