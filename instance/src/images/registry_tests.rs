//! The store: names, in use, damaged.

use super::*;
use crate::process::launch::{Launch, RootCopy};
use crate::{Event, test_image};

struct World {
    dir: tempfile::TempDir,
    images: Images,
    store: Store,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    World {
        images: Images::new(&home),
        store: Store::new(home),
        dir,
    }
}

impl World {
    fn import(&self, name: &str, content: u8) -> String {
        let file = test_image::write(self.dir.path(), name, content);
        self.images.import(&file, Some(name)).unwrap()
    }

    /// A stopped instance of the image called `name`, which reads from the store's file.
    fn stopped(&self, name: &str, root_copy: RootCopy) -> String {
        let image = Image::open(&self.images.resolve(name).unwrap()).unwrap();
        let mut held = Launch::new(&self.store, image)
            .root(None, root_copy)
            .prepare(0)
            .unwrap();
        held.update(Event::Ended, "", |r| r.image.linked = false).unwrap();
        fs::remove_file(crate::store::home::base_link(held.directory())).unwrap();
        held.record().id.to_string()
    }
}

#[test]
fn an_image_is_found_by_every_name_it_has() {
    let world = world();
    let id = world.import("hello", 1);
    world.images.tag("hello", "greeting:v1").unwrap();
    let file = world.images.resolve(&id).unwrap();
    for text in ["hello", "hello:latest", "greeting:v1", &id[..8]] {
        assert_eq!(world.images.resolve(text).unwrap(), file, "{text}");
    }
    for text in ["greeting", "ami-", "nothing", "nothing/here.ami"] {
        assert!(world.images.resolve(text).is_err(), "{text}");
    }
    let listed = world.images.list().unwrap();
    assert_eq!(listed[0].names, ["greeting:v1", "hello:latest"]);
}

#[test]
fn a_path_wins_over_a_name() {
    let world = world();
    world.import("hello", 1);
    let path = test_image::write(world.dir.path(), "hello", 2);
    let resolved = world.images.resolve(path.to_str().unwrap()).unwrap();
    assert_eq!(resolved, path.canonicalize().unwrap());
}

#[test]
fn a_name_moves_to_the_newer_image() {
    let world = world();
    let old = world.import("hello", 1);
    let new = world.import("hello", 2);
    assert_ne!(old, new);
    assert!(
        world
            .images
            .resolve("hello")
            .unwrap()
            .to_string_lossy()
            .contains(&new)
    );
    assert!(world.images.resolve(&old).is_ok());
}

#[test]
fn removing_takes_a_name_first_and_the_image_last() {
    let world = world();
    let id = world.import("hello", 1);
    world.images.tag("hello", "other").unwrap();
    let removed = world.images.remove("other", false, &world.store).unwrap();
    assert_eq!(removed, Removed::Name("other:latest".into()));
    let removed = world.images.remove("hello", false, &world.store).unwrap();
    assert_eq!(removed, Removed::Image(id.clone()));
    assert!(world.images.resolve(&id).is_err());
    assert!(world.images.list().unwrap().is_empty());
}

#[test]
fn an_image_that_a_volume_reads_from_stays_until_the_volume_is_complete() {
    let world = world();
    world.import("hello", 7);
    let user = world.stopped("hello", RootCopy::Lazy);
    let refused = world.images.remove("hello", false, &world.store).unwrap_err();
    assert!(
        matches!(&refused, Error::ImageInUse { users, .. } if *users == user),
        "{refused}"
    );
    assert!(world.images.resolve("hello").is_ok());

    world.images.remove("hello", true, &world.store).unwrap();
    let id = world.store.find(&user).unwrap();
    let root = world.store.reconcile(&id).unwrap().volumes[0].path.clone();
    let content = fs::read(root).unwrap();
    assert!(content[..test_image::ROOT as usize].iter().all(|&b| b == 7));
}

#[test]
fn an_image_whose_volumes_stand_alone_can_be_removed() {
    let world = world();
    world.import("hello", 7);
    world.stopped("hello", RootCopy::Full);
    world.images.remove("hello", false, &world.store).unwrap();
}

#[test]
fn a_damaged_image_is_refused_by_the_name_of_the_part() {
    let world = world();
    let file = test_image::write(world.dir.path(), "bad", 1);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(9).position(|w| w == b"no kernel").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = world.images.import(&file, None).unwrap_err().to_string();
    assert!(refused.contains("kernel"), "{refused}");
    bytes.truncate(bytes.len() / 2);
    fs::write(&file, &bytes).unwrap();
    assert!(world.images.import(&file, None).is_err());
    assert!(world.images.list().unwrap().is_empty());
}

#[test]
fn an_exported_image_is_the_same_image() {
    let world = world();
    let id = world.import("hello", 3);
    let out = world.dir.path().join("out.ami");
    world.images.export("hello", &out).unwrap();
    assert_eq!(Image::open(&out).unwrap().id(), id);
    assert!(
        world.images.export("hello", &out).is_err(),
        "an existing file is not overwritten"
    );
}

#[test]
fn invalid_names_are_refused() {
    let world = world();
    world.import("hello", 1);
    for name in ["", "a b", "a/b", "a:b:c", ":x", "x:", "ami-x", "../x"] {
        assert!(world.images.tag("hello", name).is_err(), "{name:?}");
    }
}

#[test]
fn remains_of_killed_commands_are_removed_and_files_in_use_are_not() {
    let world = world();
    let under_way = world.images.draft_of(&InstanceId::random()).unwrap();
    let left = under_way.with_file_name(".capture-left");
    let copied = under_way.with_file_name(".new-ami-left");
    for path in [&under_way, &left, &copied] {
        fs::write(path, "half").unwrap();
    }
    let lock = Lock::of_new(File::options().write(true).open(&under_way).unwrap()).unwrap();
    world.import("hello", 1);
    assert!(under_way.exists() && !left.exists() && !copied.exists());
    drop(lock);
    world.images.remove("hello", false, &world.store).unwrap();
    assert!(!under_way.exists());
}
