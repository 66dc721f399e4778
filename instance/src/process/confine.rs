//! What the process that runs an instance's guest needs, and nothing else: the plan for [`machine::sandbox`].

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::images::image::Image;
use crate::store::home::{Home, base_link};
use crate::store::network::Network;
use crate::store::record::{Accel, Record, VolumeKind};
use crate::{Error, Result};
use machine::net::user::RESOLVERS;
use machine::sandbox::{Capability, Plan, Right};

/// The lowest port that needs no privilege (ip(7), `ip_unprivileged_port_start`, as it is unless somebody
/// changed it).
const FIRST_FREE_PORT: u16 = 1024;

/// The plan for the instance process of the instance that `record` describes, kept in `directory`. `outputs`
/// are files that it writes when its guest has ended; they are made now.
pub fn plan(
    record: &Record,
    directory: &Path,
    home: &Home,
    image: &Image,
    outputs: &[PathBuf],
) -> Result<Plan> {
    let mut files = vec![
        (directory.to_path_buf(), Right::Keep),
        (home.seal(image.id()), Right::Read),
    ];
    let image = if record.image.linked {
        base_link(directory)
    } else {
        record.image.path.clone()
    };
    files.push((image, Right::Read));
    let config = &record.config;
    let boot = [&config.kernel, &config.initrd].into_iter().flatten();
    files.extend(boot.map(|path| (path.clone(), Right::Read)));
    files.extend(record.volumes.iter().filter_map(|volume| {
        let inside = volume.path.starts_with(directory);
        (!inside).then(|| (volume.path.clone(), volume_right(&volume.path, volume.kind)))
    }));
    if config.accel != Accel::Soft {
        files.push(("/dev/kvm".into(), Right::Device));
    }
    for path in outputs {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(Error::file("writing", path))?;
        files.push((path.clone(), Right::Write));
    }
    let mut plan = Plan {
        files,
        ..Plan::default()
    };
    add_network(&mut plan, &config.network);
    let low = |host: u16| (1..FIRST_FREE_PORT).contains(&host);
    if config.ports.iter().any(|port| low(port.host)) {
        plan.capabilities.push(Capability::NetBindService);
    }
    Ok(plan)
}

/// A file that a person gave may be a disk of the host, which answers commands.
fn volume_right(path: &Path, kind: VolumeKind) -> Right {
    let device = |path| fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    if kind == VolumeKind::File && device(path) {
        Right::Device
    } else {
        Right::Write
    }
}

fn add_network(plan: &mut Plan, network: &Network) {
    match network {
        Network::None => {}
        Network::User | Network::UserLoopback => {
            plan.tcp = true;
            plan.network = true;
            add_resolvers(plan, fs::canonicalize(RESOLVERS).ok().as_deref());
        }
        Network::Tap(_) => {
            plan.network = true;
            plan.files.push(("/dev/net/tun".into(), Right::Device));
            plan.capabilities.push(Capability::NetAdmin);
        }
    }
}

/// Lets the file which names the host's resolvers be read; `target` is what its name leads to, if there is
/// one. Programs replace it, and the right to read one file ends with that. What else lies in the same
/// directory is nothing to this process, unless the directory is for that file.
fn add_resolvers(plan: &mut Plan, target: Option<&Path>) {
    let Some(target) = target else { return };
    match resolver_directory(target) {
        Some(directory) => plan.files.push((directory.to_owned(), Right::Read)),
        None => plan.replaced = Some(RESOLVERS.into()),
    }
}

/// The directory that a program keeps for the file which names the host's resolvers, if that is a link there
/// (systemd-resolved, NetworkManager).
fn resolver_directory(target: &Path) -> Option<&Path> {
    let directory = target.parent()?;
    let kept = directory.strip_prefix("/run").ok()?;
    kept.file_name().map(|_| directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::launch::{Launch, VolumeRequest};
    use crate::store::Store;
    use crate::store::record::Config;
    use crate::test_image;

    fn plan_of(config: Config, volumes: Vec<VolumeRequest>) -> (tempfile::TempDir, Record, PathBuf, Plan) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let path = test_image::write(dir.path(), "image", 1);
        let launch = Launch::new(&store, Image::open(&path).unwrap())
            .config(config)
            .volumes(volumes);
        let held = launch.prepare(0).unwrap();
        let (record, directory) = (held.record().clone(), held.directory().to_path_buf());
        let image = Image::open(&path).unwrap();
        let plan = plan(&record, &directory, store.home(), &image, &[]).unwrap();
        (dir, record, directory, plan)
    }

    #[test]
    fn an_instance_gets_its_directory_and_may_only_read_its_image() {
        let (_dir, record, directory, plan) = plan_of(Config::default(), Vec::new());
        let right = |path: &Path| plan.files.iter().find(|(p, _)| p == path).map(|(_, r)| *r);
        assert_eq!(right(&directory), Some(Right::Keep));
        assert!(record.image.linked);
        assert_eq!(right(&base_link(&directory)), Some(Right::Read));
        assert!(!base_link(&directory).starts_with(&directory));
        assert_eq!(right(Path::new("/dev/kvm")), Some(Right::Device));
        assert!(plan.tcp && plan.network && plan.capabilities.is_empty());
        // The directory of the host's resolvers, where they have one.
        let run = |(path, right): &&(PathBuf, Right)| path.starts_with("/run") && *right == Right::Read;
        let others = plan.files.iter().filter(run).count();
        assert!(others <= 1 && plan.files.len() == 4 + others, "{:?}", plan.files);
    }

    #[test]
    fn each_option_grants_the_access_that_it_needs_and_no_more() {
        let config = Config {
            accel: Accel::Soft,
            network: Network::None,
            ..Config::default()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let volume = file.path().to_str().unwrap().parse().unwrap();
        let (_dir, _, _, plan) = plan_of(config, vec!["4M".parse().unwrap(), volume]);
        let real = file.path().canonicalize().unwrap();
        assert!(plan.files.contains(&(real, Right::Write)));
        assert!(
            !plan.tcp && !plan.network && plan.files.len() == 4,
            "{:?}",
            plan.files
        );

        let config = Config {
            network: Network::Tap("tap0".into()),
            ports: vec!["80:80".parse().unwrap()],
            ..Config::default()
        };
        let (_dir, _, _, plan) = plan_of(config, Vec::new());
        assert_eq!(
            plan.capabilities,
            [Capability::NetAdmin, Capability::NetBindService]
        );
        assert!(!plan.tcp && plan.network);
    }

    #[test]
    fn resolv_conf_is_read_by_the_helper_or_through_its_directory() {
        let plan = |target: Option<&str>| {
            let mut plan = Plan::default();
            add_resolvers(&mut plan, target.map(Path::new));
            (plan.files, plan.replaced)
        };
        assert_eq!(plan(Some("/etc/resolv.conf")), (vec![], Some(RESOLVERS.into())));
        let directory = ("/run/NetworkManager".into(), Right::Read);
        assert_eq!(
            plan(Some("/run/NetworkManager/resolv.conf")),
            (vec![directory], None)
        );
        assert_eq!(plan(None), (vec![], None));
    }

    #[test]
    fn only_a_directory_below_run_is_granted_for_a_linked_resolv_conf() {
        let directory = |target: &'static str| resolver_directory(Path::new(target));
        for (target, expected) in [
            (
                "/run/systemd/resolve/stub-resolv.conf",
                Some("/run/systemd/resolve"),
            ),
            ("/run/NetworkManager/resolv.conf", Some("/run/NetworkManager")),
            ("/run/resolv.conf", None),
            ("/etc/resolv.conf", None),
            ("/srv/etc/resolv.conf", None),
        ] {
            assert_eq!(directory(target), expected.map(Path::new), "{target}");
        }
    }
}
