//! The API over a real socket, and its description against the code.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::api::client::Client;
use crate::process::console::Console;
use crate::process::guest::Guest;
use crate::store::Store;
use crate::store::home::Home;
use crate::store::instances::tests::draft;
use crate::store::pause::{NoSpace, Paused};
use crate::test_guest::Forever;
use crate::{Record, State};
use machine::virtio::determinism::Determinism;

/// After this long a thread does not merely wait for a processor.
const STUCK: Duration = Duration::from_secs(60);

struct World {
    _dir: tempfile::TempDir,
    process: Arc<InstanceProcess>,
    client: Client,
    /// Connections that are being served.
    open: Arc<AtomicUsize>,
    running: Option<std::thread::JoinHandle<()>>,
}

impl World {
    fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let held = store.create(draft(Some("web")), |_, _| Ok(())).unwrap();
        let console = Console::new(held.directory());
        let process = InstanceProcess::new(held, console, Box::new(|_, _| Ok(())), Determinism::default());
        let open = Arc::default();
        serve_counted(Arc::clone(&process), Arc::clone(&open)).unwrap();
        let client = Client::new(process.id().clone(), process.directory().to_path_buf());
        let running = {
            let process = Arc::clone(&process);
            std::thread::spawn(move || {
                let build = |_: &Record, _: &std::path::Path, _: &Console| {
                    Ok(Box::new(Forever::default()) as Box<dyn Guest>)
                };
                process.run(build, || Ok(())).unwrap();
            })
        };
        while process.record().state != State::Running {
            std::thread::yield_now();
        }
        World {
            _dir: dir,
            process,
            client,
            open,
            running: Some(running),
        }
    }

    /// A connection is given up when its thread has noticed that the peer has gone, which may be a moment
    /// later.
    fn until_nobody_is_served(&self) {
        let started = std::time::Instant::now();
        while self.open.load(Ordering::Relaxed) > 0 {
            assert!(
                started.elapsed() < STUCK,
                "a connection is served though its peer has gone"
            );
            std::thread::yield_now();
        }
    }

    fn raw(&self, text: &[u8]) -> Response {
        let mut stream = sockets::connect(self.process.directory(), sockets::CONTROL).unwrap();
        stream.write_all(text).unwrap();
        http::receive(&mut stream, http::parse_response)
            .unwrap()
            .unwrap()
            .0
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.process.kill();
        self.running.take().unwrap().join().unwrap();
    }
}

#[test]
fn describe_answers_the_record() {
    let world = World::start();
    assert_eq!(world.client.describe().unwrap(), world.process.record());
}

#[test]
fn stop_ends_the_guest_and_notifies_subscribers() {
    let world = World::start();
    let mut news = world.client.watch().unwrap();
    assert_eq!(news.next().unwrap().state, State::Running);
    world.client.stop(Duration::ZERO).unwrap();
    let states: Vec<_> = news.map(|n| n.state).collect();
    assert_eq!(states, [State::Stopping, State::Stopped]);
    assert!(world.client.stop(Duration::ZERO).is_err());
}

#[test]
fn a_reboot_before_the_agent_is_there_is_refused_with_the_reason() {
    let world = World::start();
    let refused = world.client.reboot().unwrap_err();
    assert_eq!(refused.code(), Code::IncorrectState);
    assert!(refused.to_string().contains("agent"), "{refused}");
    world.process.set_ready();
    world.client.reboot().unwrap();
}

#[test]
fn an_instance_is_paused_and_goes_on_by_request() {
    let world = World::start();
    assert!(world.client.resume().is_err(), "it is not paused");
    world.client.pause().unwrap();
    let record = world.client.describe().unwrap();
    assert!(record.paused.unwrap().requested);
    assert_eq!(
        (record.state, record.reason.as_str()),
        (State::Running, "paused by request")
    );
    let refused = world.client.pause().unwrap_err().to_string();
    assert!(refused.contains("already"), "{refused}");
    assert!(world.client.watch().unwrap().next().unwrap().paused.is_some());
    world.process.set_ready();
    let refused = world.client.reboot().unwrap_err().to_string();
    assert!(refused.contains("paused by request"), "{refused}");
    world.client.resume().unwrap();
    assert_eq!(world.client.describe().unwrap().paused, None);
    world.client.pause().unwrap();
    let states = world.client.watch().unwrap();
    world.client.stop(Duration::ZERO).unwrap();
    assert_eq!(states.last().unwrap().state, State::Stopped);
    assert_eq!(world.process.record().paused, None);
}

#[test]
fn consoles_attach_and_detach_independently() {
    let world = World::start();
    let (sender, typed) = std::sync::mpsc::channel();
    world
        .process
        .console()
        .connect_input(Some(Box::new(move |bytes| sender.send(bytes.to_vec()).unwrap())));
    world.process.console().output(b"login: ");
    let (mut first, mut keys) = world.client.console().unwrap();
    let (mut second, leaver) = world.client.console().unwrap();
    let mut seen = [0; 7];
    first.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"login: ");
    second.read_exact(&mut seen).unwrap();
    keys.write_all(b"root\r").unwrap();
    assert_eq!(typed.recv().unwrap(), b"root\r");
    drop((second, leaver));
    world.process.console().output(b"welcome");
    first.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"welcome");
}

#[test]
fn logs_follow_to_the_end() {
    let world = World::start();
    world.process.console().output(b"one\n");
    let mut logs = world.client.logs().unwrap();
    let mut line = [0; 4];
    logs.read_exact(&mut line).unwrap();
    world.process.console().output(b"two\n");
    world.client.stop(Duration::ZERO).unwrap();
    let mut rest = String::new();
    logs.read_to_string(&mut rest).unwrap();
    assert_eq!((&line, rest.as_str()), (b"one\n", "two\n"));
}

#[test]
fn bad_requests_are_answered_and_affect_no_other_client() {
    let world = World::start();
    for (text, status) in [
        (&b"GET /nothing HTTP/1.1\r\n\r\n"[..], 404),
        (b"DELETE /v1/instance HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/console HTTP/1.1\r\n\r\n", 426),
        (
            b"POST /v1/instance/stop HTTP/1.1\r\nContent-Length: 1\r\n\r\n{",
            400,
        ),
        (
            b"POST /v1/instance/stop HTTP/1.1\r\nContent-Length: 15\r\n\r\n{\"surprise\": 1}",
            400,
        ),
        (
            b"POST /v1/instance/stop HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]",
            400,
        ),
        (
            b"POST /v1/instance/stop HTTP/1.1\r\nContent-Length: 3\r\n\r\n[0]",
            400,
        ),
        (b"\x16\x03\x01\r\n\r\n", 400),
    ] {
        let response = world.raw(text);
        assert_eq!(response.status, status, "{}", String::from_utf8_lossy(text));
        let problem: Value = serde_json::from_slice(&response.body).unwrap();
        assert!(problem["error"].is_string(), "{problem}");
        assert!(
            Code::named(problem["code"].as_str().unwrap()).is_some(),
            "{problem}"
        );
    }
    assert_eq!(world.client.describe().unwrap().state, State::Running);
}

/// As `exec`, `cp` and `ssh` do: each watches until the agent is there, and leaves. Nothing is published
/// meanwhile.
#[test]
fn a_thousand_connections_leave_nothing_behind() {
    let world = World::start();
    world.process.set_ready();
    for number in 0..1000 {
        match number % 4 {
            0 => drop(world.client.logs().unwrap()),
            1 => drop(world.client.console().unwrap()),
            _ => assert!(world.client.watch().unwrap().any(|news| news.ready)),
        }
        world.until_nobody_is_served();
    }
    assert_eq!(world.client.describe().unwrap().state, State::Running);
}

#[test]
fn refusals_name_the_allowed_method_and_protocol() {
    let world = World::start();
    let text = |request: &[u8]| {
        let mut stream = sockets::connect(world.process.directory(), sockets::CONTROL).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let refused = text(b"GET /v1/instance/stop HTTP/1.1\r\n\r\n");
    assert!(refused.contains("\r\nAllow: POST\r\n"), "{refused}");
    let refused = text(b"GET /v1/console HTTP/1.1\r\n\r\n");
    assert!(refused.contains("\r\nUpgrade: kiln-stream\r\n"), "{refused}");
}

#[test]
fn one_connection_too_many_is_refused() {
    let world = World::start();
    let idle: Vec<_> = (0..MAX_CONNECTIONS)
        .map(|_| sockets::connect(world.process.directory(), sockets::CONTROL).unwrap())
        .collect();
    let mut stream = sockets::connect(world.process.directory(), sockets::CONTROL).unwrap();
    let (response, _) = http::receive(&mut stream, http::parse_response).unwrap().unwrap();
    assert_eq!(response.status, 503);
    drop(idle);
}

fn description() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_description_has_exactly_the_routes() {
    let described: BTreeSet<_> = description()["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().map(|(method, operation)| {
                let id = operation["operationId"].as_str().unwrap().to_owned();
                (path.clone(), method.to_uppercase(), id)
            })
        })
        .collect();
    let served: BTreeSet<_> = ROUTES
        .iter()
        .map(|r| (r.path.to_owned(), r.method.to_owned(), r.id.to_owned()))
        .collect();
    assert_eq!(described, served);
}

/// What a record has only where there is something to say.
const LEFT_OUT: &[(&str, &str)] = &[
    ("Instance", "paused"),
    ("Instance.config", "instance_type"),
    ("Instance.config", "security_groups"),
];

/// The names in a described object and in one that is really sent are the same, all the way down.
fn same_shape(description: &Value, schema: &Value, sent: &Value, at: &str) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => &description["components"]["schemas"][reference.rsplit('/').next().unwrap()],
        None => schema,
    };
    if let (Some(properties), Some(sent)) = (schema["properties"].as_object(), sent.as_object()) {
        let described: BTreeSet<_> = properties.keys().collect();
        let present: BTreeSet<_> = sent.keys().collect();
        assert_eq!(described, present, "at {at}");
        let required: BTreeSet<_> = schema["required"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let always = present.iter().map(|name| name.as_str());
        let always = always.filter(|name| !LEFT_OUT.contains(&(at, *name))).collect();
        assert_eq!(required, always, "required at {at}");
        for (name, property) in properties {
            same_shape(description, property, &sent[name], &format!("{at}.{name}"));
        }
    }
    if let (Some(items), Some(sent)) = (schema.get("items"), sent.as_array()) {
        sent.iter()
            .for_each(|item| same_shape(description, items, item, &format!("{at}[]")));
    }
}

#[test]
fn the_description_has_the_records_shape() {
    let mut record = draft(Some("web"));
    record.volumes.push(crate::store::record::Volume {
        id: crate::VolumeId::random(),
        device: "/dev/vda".into(),
        path: "/x".into(),
        size: 1,
        delete_on_termination: true,
        kind: crate::store::record::VolumeKind::Lazy,
    });
    record.config.instance_type = Some("t3.micro".into());
    record
        .config
        .security_groups
        .push(crate::store::record::SecurityGroup {
            id: "sg-0123456789abcdef0".into(),
            name: "web".into(),
        });
    record.paused = Some(Paused {
        requested: false,
        no_space: Some(NoSpace {
            device: "/dev/vda".into(),
            path: "/x".into(),
            free: Some(0),
            error: "No space left on device".into(),
        }),
    });
    let description = description();
    let schemas = &description["components"]["schemas"];
    let plain = serde_json::to_value(draft(None)).unwrap();
    for (at, name) in LEFT_OUT {
        let object = match *at {
            "Instance" => &plain,
            _ => &plain["config"],
        };
        assert!(object.get(name).is_none(), "{plain}");
    }
    same_shape(
        &description,
        &schemas["Instance"],
        &serde_json::to_value(record).unwrap(),
        "Instance",
    );
    let states: Vec<_> = State::ALL.iter().map(|s| Value::from(s.to_string())).collect();
    assert_eq!(schemas["State"]["enum"], Value::from(states));
    let stop = serde_json::to_value(StopRequest { time: Some(1) }).unwrap();
    let described: Vec<_> = schemas["Stop"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(described, stop.as_object().unwrap().keys().collect::<Vec<_>>());
}
