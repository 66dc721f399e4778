//! The service without a terminal, with instances whose guest is a stub.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use guest_init::proto::{Ended, Exec, Frame, Kind, Request, read_frame, write_frame};

use super::*;
use crate::guest::agent::Incoming;
use crate::process::console::Console;
use crate::process::guest::Guest;
use crate::process::instance_process::InstanceProcess;
use crate::process::launch::Launch;
use crate::process::per_run::HostUse;
use crate::store::network::Network;
use crate::store::record::{Accel, Config, Ending};
use crate::store::sockets;
use crate::store::tags::TagChange;
use crate::test_guest::Forever;
use crate::{Code, Error, Event, Record, State, test_image};
use machine::virtio::determinism::Determinism;

/// Longer than anything here takes, so that a wait that fails does so for another reason.
const LONG: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    service: Service,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::new(Home::at(dir.path()));
        World { dir, service }
    }

    /// A request that names an image.
    fn request(&self) -> RunInstances {
        let path = test_image::write(self.dir.path(), "hello", 5);
        RunInstances::of(path.to_str().unwrap())
    }

    /// A stopped instance of that name.
    fn stopped(&self, name: &str) -> Record {
        let mut request = self.request();
        request.name = Some(name.into());
        request.tags = [("role".to_owned(), name.to_owned())].into();
        request.volumes = vec!["4M,keep".parse().unwrap()];
        let (mut held, _) = self.service.prepare_instance(&request).unwrap();
        held.apply(Event::Ended, "the test has stopped it").unwrap();
        held.record().clone()
    }

    /// A running instance of that name, whose guest is none.
    fn running(&self, name: &str) -> Running {
        let mut request = self.request();
        request.name = Some(name.into());
        let (held, _) = self.service.prepare_instance(&request).unwrap();
        let console = Console::new(held.directory());
        let process = InstanceProcess::new(held, console, Box::new(|_, _| Ok(())), Determinism::default());
        let (started, run) = (Arc::clone(&process), Arc::clone(&process));
        let thread = std::thread::spawn(move || {
            let build =
                |_: &Record, _: &Path, _: &Console| Ok(Box::new(Forever::default()) as Box<dyn Guest>);
            run.run(build, || crate::api::serve(started)).unwrap();
        });
        while process.record().state != State::Running {
            std::thread::yield_now();
        }
        Running {
            process,
            thread: Some(thread),
        }
    }
}

struct Running {
    process: Arc<InstanceProcess>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.kill();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn code<T>(done: crate::Result<T>) -> &'static str {
    match done {
        Ok(_) => "",
        Err(error) => error.code().as_str(),
    }
}

fn stop(instance: &str) -> StopInstance {
    StopInstance {
        instance: instance.into(),
        timeout: Duration::ZERO,
    }
}

fn terminate(instance: &str) -> TerminateInstance {
    TerminateInstance {
        instance: instance.into(),
        timeout: Duration::ZERO,
    }
}

#[test]
fn impossible_launches_are_refused_by_code_and_make_nothing() {
    let world = World::new();
    let port = |text: &str| text.parse().unwrap();
    let config = |network, ports| Config {
        network,
        ports,
        ..Config::default()
    };
    let with = |change: &dyn Fn(&mut RunInstances)| {
        let mut request = world.request();
        change(&mut request);
        request
    };
    let cases = [
        (RunInstances::of("nothing"), Code::ImageNotFound),
        (with(&|r| r.count = 0), Code::InvalidValue),
        (with(&|r| r.count = 1001), Code::InvalidValue),
        (
            with(&|r| (r.count, r.name) = (2, Some("web".into()))),
            Code::InvalidCombination,
        ),
        (
            with(&|r| (r.count, r.config) = (2, config(Network::User, vec![port("8080:80")]))),
            Code::InvalidCombination,
        ),
        (
            with(&|r| r.config = config(Network::None, vec![port("80")])),
            Code::InvalidCombination,
        ),
        (
            with(&|r| (r.per_run.icount, r.config.accel) = (true, Accel::Kvm)),
            Code::InvalidCombination,
        ),
        (
            with(&|r| (r.per_run.icount, r.config.cpus) = (true, Some(2))),
            Code::InvalidCombination,
        ),
        (
            with(&|r| r.user_data = Some(vec![b'x'; 16385])),
            Code::InvalidValue,
        ),
        (
            with(&|r| r.volumes = vec!["4M".parse().unwrap(); 16]),
            Code::TooManyVolumes,
        ),
        (with(&|r| r.name = Some("../x".into())), Code::InvalidValue),
    ];
    for (request, expected) in cases {
        assert_eq!(
            code(world.service.check_launch(&request)),
            expected.as_str(),
            "{request:?}"
        );
        assert_eq!(
            code(world.service.prepare_instance(&request)),
            expected.as_str(),
            "{request:?}"
        );
    }
    let all = world.service.describe_instances(&DescribeInstances::default());
    assert!(all.unwrap().records.is_empty());
    // A port that the host chooses can be used by several.
    let several = RunInstances {
        count: 2,
        config: config(Network::User, vec![port("80")]),
        ..world.request()
    };
    world.service.launch_instances(&several).unwrap();
}

#[test]
fn instances_are_described_by_name_state_and_tag() {
    let world = World::new();
    let web = world.stopped("web");
    let _db = world.running("db");
    let names = |request: &DescribeInstances| -> Vec<String> {
        let described = world.service.describe_instances(request).unwrap();
        described
            .records
            .into_iter()
            .filter_map(|record| record.name)
            .collect()
    };
    let all = DescribeInstances::default;
    assert_eq!(names(&all()).len(), 2);
    #[rustfmt::skip]
    let cases = [
        (DescribeInstances { instances: vec!["web".into()], ..all() }, &["web"][..]),
        (DescribeInstances { instances: vec![web.id.to_string()[..8].into()], ..all() }, &["web"]),
        (DescribeInstances { states: vec![State::Running], ..all() }, &["db"]),
        (DescribeInstances { tags: vec![("role".into(), "web".into())], ..all() }, &["web"]),
        (DescribeInstances { tags: vec![("role".into(), "db".into())], ..all() }, &[]),
    ];
    for (request, expected) in cases {
        assert_eq!(names(&request), expected, "{request:?}");
    }
    assert_eq!(
        code(world.service.describe_instance("nobody")),
        "InvalidInstanceID.NotFound"
    );
    std::fs::write(world.service.home().instance(&web.id).join("instance.json"), "{").unwrap();
    let described = world.service.describe_instances(&all()).unwrap();
    assert_eq!((described.records.len(), described.damaged.len()), (1, 1));
    assert_eq!(described.damaged[0].0, web.id);
    assert_eq!(described.damaged[0].1.code(), Code::Internal);
    world
        .service
        .terminate_instance(&terminate(web.id.as_str()))
        .unwrap();
    assert_eq!(names(&all()), ["db"]);
}

#[test]
fn a_request_in_the_wrong_state_has_its_code() {
    let world = World::new();
    let service = &world.service;
    world.stopped("still");
    let running = world.running("busy");
    let start = StartInstance {
        instance: "busy".into(),
        host: HostUse::default(),
        cold: false,
    };
    for (what, done) in [
        ("start", code(service.start_instance(&start))),
        ("reboot", code(service.reboot_instance("still"))),
        ("pause", code(service.pause_instance("still"))),
        ("resume", code(service.resume_instance("still"))),
        // The process of the instance says so.
        ("resume", code(service.resume_instance("busy"))),
        ("attach", code(service.attach_console("still"))),
        ("ports", code(service.published_ports("still"))),
        ("wait", code(service.wait_for("still", WaitFor::Agent, LONG))),
    ] {
        assert_eq!(done, "IncorrectInstanceState", "{what}");
    }
    assert_eq!(
        code(service.wait_for("busy", WaitFor::Agent, Duration::ZERO)),
        "RequestTimeout"
    );
    service.pause_instance("busy").unwrap();
    let refused = service.wait_for("busy", WaitFor::Agent, LONG).unwrap_err();
    assert!(matches!(refused, Error::IsPaused { .. }), "{refused}");
    assert_eq!(code(service.pause_instance("busy")), "IncorrectInstanceState");
    service.resume_instance("busy").unwrap();
    running.process.set_ready();
    service.wait_for("busy", WaitFor::Agent, LONG).unwrap();
    let id = running.process.id().clone();
    drop(running);
    let ended = service.wait_for_launched(&id, WaitFor::Agent, LONG).unwrap_err();
    assert!(matches!(ended, Error::EndedEarly(_)), "{ended}");
}

#[test]
fn an_instance_is_stopped_and_removed_and_its_kept_volumes_are_named() {
    let world = World::new();
    let service = &world.service;
    let running = world.running("web");
    running.process.console().output(b"hello\n");
    assert_eq!(service.console_output("web").unwrap(), b"hello\n");
    let mut follow = service.follow_console("web").unwrap().unwrap();
    let id = service.stop_instance(&stop("web")).unwrap();
    assert_eq!(&id, running.process.id());
    let mut output = String::new();
    follow.read_to_string(&mut output).unwrap();
    assert_eq!(output, "hello\n");
    assert!(service.follow_console("web").unwrap().is_none());
    service.stop_instance(&stop("web")).unwrap();
    assert!(
        service
            .terminate_instance(&terminate("web"))
            .unwrap()
            .kept
            .is_empty()
    );
    assert_eq!(
        code(service.terminate_instance(&terminate("web"))),
        "InvalidInstanceID.NotFound"
    );

    let record = world.stopped("data");
    let terminated = service.terminate_instance(&terminate("data")).unwrap();
    assert_eq!(terminated.id, record.id);
    let kept: Vec<_> = terminated.kept.iter().map(|volume| &volume.id).collect();
    assert_eq!(kept, [&record.volumes[1].id]);
    assert!(terminated.kept[0].path.exists());
}

#[test]
fn a_command_runs_through_the_agent() {
    let world = World::new();
    let running = world.running("web");
    running.process.set_ready();
    let ready = world.service.ready_instance("web", LONG).unwrap();
    assert_eq!(ready.id(), running.process.id());
    let listener = sockets::bind(ready.directory(), sockets::VSOCK).unwrap();
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = [0; "CONNECT 1024\n".len()];
        stream.read_exact(&mut line).unwrap();
        stream.write_all(b"OK 4000\n").unwrap();
        let request: Request = read_frame(&mut stream).unwrap().unwrap().message().unwrap();
        let ended = Frame::json(Kind::Ended, &Ended::Exited(3)).unwrap();
        write_frame(&mut stream, ended.kind, &ended.payload).unwrap();
        request
    });
    let command = Exec {
        argv: vec!["false".into()],
        ..Exec::default()
    };
    let mut session = ready.exec(command.clone()).unwrap();
    let ended = session.receive().unwrap();
    assert!(
        matches!(ended, Some(Incoming::Ended(Ended::Exited(3)))),
        "{ended:?}"
    );
    assert_eq!(agent.join().unwrap(), Request::Exec(command));
    // Nobody answers any more.
    assert_eq!(code(ready.copy_out("/etc")), "InternalError");
}

#[test]
fn images_are_registered_named_and_deregistered() {
    let world = World::new();
    let service = &world.service;
    let path = test_image::write(world.dir.path(), "hello", 5);
    let register = |name: &str| RegisterImage {
        path: path.clone(),
        name: Some(name.into()),
    };
    let id = service.register_image(&register("hello")).unwrap();
    assert_eq!(service.tag_image("hello", "greeting:1").unwrap(), id);
    let names: Vec<_> = service
        .describe_images()
        .unwrap()
        .into_iter()
        .flat_map(|image| image.names)
        .collect();
    assert_eq!(names, ["greeting:1", "hello:latest"]);
    assert_eq!(service.open_image(&id).unwrap().id(), id);
    assert_eq!(
        code(service.register_image(&register("not a name"))),
        "InvalidParameterValue"
    );
    assert_eq!(code(service.open_image("absent")), "InvalidAMIID.NotFound");
    let deregister = |image: &str| DeregisterImage {
        image: image.into(),
        force: false,
    };
    service.deregister_image(&deregister(&id)).unwrap();
    assert_eq!(
        code(service.deregister_image(&deregister(&id))),
        "InvalidAMIID.NotFound"
    );
    let create = CreateImage {
        instance: "nobody".into(),
        name: "x".into(),
        description: None,
        no_reboot: false,
        keep_identity: true,
    };
    assert_eq!(code(service.create_image(&create)), "InvalidInstanceID.NotFound");
}

#[test]
fn an_image_is_made_of_a_stopped_instance_and_launched() {
    let world = World::new();
    let record = world.stopped("model");
    let create = CreateImage {
        instance: "model".into(),
        name: "copy".into(),
        description: Some("a copy".into()),
        no_reboot: false,
        keep_identity: true,
    };
    let created = world.service.create_image(&create).unwrap();
    let image = world.service.open_image("copy").unwrap();
    assert_eq!(image.id(), created.id);
    assert_eq!(
        image.manifest().source_instance.as_deref(),
        Some(record.id.as_str())
    );
    let launch = Launch::new(world.service.store(), image);
    assert_eq!(launch.plan(0).unwrap().image.id, created.id);
}

#[test]
fn what_cannot_be_saved_is_refused_and_a_snapshot_that_fails_leaves_nothing() {
    let world = World::new();
    let service = &world.service;
    world.stopped("still");
    let snapshot = |instance: &str| {
        service.snapshot_instance(&SnapshotInstance {
            instance: instance.into(),
            name: "warm".into(),
            description: None,
        })
    };
    assert_eq!(code(snapshot("still")), "IncorrectInstanceState");
    assert_eq!(
        code(service.hibernate_instance("still")),
        "IncorrectInstanceState"
    );
    let several = CloneInstance {
        instance: "busy".into(),
        count: 2,
        name: Some("clone".into()),
        host: HostUse::default(),
    };
    assert_eq!(
        code(service.clone_instance(&several)),
        "InvalidParameterCombination"
    );

    // What is saved of this guest is no machine's state.
    let busy = world.running("busy");
    let directory = busy.process.directory();
    let before = std::fs::read_dir(directory).unwrap().count();
    assert_eq!(code(snapshot("busy")), "InternalError");
    assert_eq!(busy.process.record().paused, None, "it goes on");
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), before);
    let images = std::fs::read_dir(service.home().images()).unwrap();
    assert_eq!(images.count(), 0);
}

#[test]
fn tags_change_whether_the_instance_runs_or_not() {
    let world = World::new();
    let stopped = world.stopped("db");
    let running = world.running("web");
    let change = TagChange {
        set: [("role".to_owned(), "cache".to_owned())].into(),
        remove: [("gone".to_owned(), None)].into(),
    };
    for id in [stopped.id.as_str(), running.process.id().as_str()] {
        let record = world.service.change_tags(id, &change).unwrap();
        assert_eq!(record.tags, change.set);
        assert_eq!(world.service.describe_instance(id).unwrap().tags, change.set);
    }
    assert_eq!(running.process.record().tags, change.set);
    let long = TagChange {
        set: [("x".repeat(129), String::new())].into(),
        ..TagChange::default()
    };
    assert_eq!(
        code(world.service.change_tags("web", &long)),
        "InvalidParameterValue"
    );
}

#[test]
fn only_a_stopped_instance_is_modified() {
    let world = World::new();
    let stopped = world.stopped("db");
    let _running = world.running("web");
    let request = |instance: &str| ModifyInstance {
        instance: instance.into(),
        size: Some(MachineSize {
            name: "t3.micro".into(),
            cpus: 2,
            memory: 1 << 30,
        }),
        user_data: Some(b"new".to_vec()),
        auto_remove: None,
    };
    assert_eq!(
        code(world.service.modify_instance(&request("web"))),
        "IncorrectInstanceState"
    );
    world.service.modify_instance(&request("db")).unwrap();
    let record = world.service.describe_instance("db").unwrap();
    assert_eq!(
        (record.config.cpus, record.config.memory),
        (Some(2), Some(1 << 30))
    );
    let documents = world.service.metadata(&record).unwrap();
    assert_eq!(documents.user_data.as_deref(), Some(b"new".as_slice()));
    assert_eq!(documents.instance_type, "t3.micro");

    let long = ModifyInstance {
        user_data: Some(vec![0; 16385]),
        ..request("db")
    };
    assert_eq!(
        code(world.service.modify_instance(&long)),
        "InvalidParameterValue"
    );
    // The saved guest has the machine that it had.
    let mut held = world.service.store().hold(&stopped.id, Event::Start).unwrap();
    held.change(|record| record.ending = Some(Ending::Hibernated))
        .unwrap();
    drop(held);
    assert_eq!(
        code(world.service.modify_instance(&request("db"))),
        "IncorrectInstanceState"
    );
}
