//! What a launch leaves on disk.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::store::home::Home;
use crate::{Event, test_image};

fn world() -> (tempfile::TempDir, Store, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(Home::at(dir.path()));
    let image = test_image::write(dir.path(), "hello", 5);
    (dir, store, image)
}

fn launch(store: &Store, image: &Path) -> Launch {
    Launch::new(store, Image::open(image).unwrap())
}

#[test]
fn a_launch_makes_a_sparse_root_volume_of_the_images_size() {
    let (_dir, store, image) = world();
    let held = launch(&store, &image).prepare(0).unwrap();
    let root = &held.record().volumes[0];
    assert_eq!(
        (root.device.as_str(), root.size, root.kind),
        ("/dev/vda", 8 << 20, VolumeKind::Lazy)
    );
    assert_eq!(root.path, held.directory().join(ROOT));
    assert!(fs::metadata(&root.path).unwrap().blocks() * 512 <= 64 << 10);
    assert!(volume::Volume::needs_base(&root.path).unwrap());
}

#[test]
fn an_instance_keeps_its_image_when_the_file_is_deleted() {
    let (_dir, store, image) = world();
    let held = launch(&store, &image).prepare(0).unwrap();
    fs::remove_file(&image).unwrap();
    let record = held.record();
    assert!(record.image.linked);
    let again = Image::of_instance(record, held.directory()).unwrap();
    assert_eq!(again.id(), record.image.id);
    volume::Volume::open(&record.volumes[0].path, Some(again.root().unwrap())).unwrap();
}

#[test]
fn a_replaced_image_is_noticed() {
    let (dir, store, image) = world();
    let mut held = launch(&store, &image).prepare(0).unwrap();
    held.change(|r| r.image.linked = false).unwrap();
    test_image::write(dir.path(), "hello", 6);
    let refused = Image::of_instance(held.record(), held.directory()).unwrap_err();
    assert!(refused.to_string().contains("was launched from"), "{refused}");
}

#[test]
fn volumes_are_deleted_or_kept_as_requested() {
    let (dir, store, image) = world();
    let mine = dir.path().join("mine.img");
    fs::write(&mine, vec![1; 4096]).unwrap();
    let wishes = ["5M", "3M,keep", mine.to_str().unwrap()].map(|w| w.parse::<VolumeRequest>().unwrap());
    let mut held = launch(&store, &image)
        .volumes(wishes.to_vec())
        .prepare(0)
        .unwrap();
    let volumes = held.record().volumes.clone();
    let devices: Vec<_> = volumes
        .iter()
        .map(|v| (v.device.as_str(), v.size, v.delete_on_termination))
        .collect();
    let expected = [
        ("/dev/vda", 8 << 20, true),
        ("/dev/vdb", 5 << 20, true),
        ("/dev/vdc", 3 << 20, false),
        ("/dev/vdd", 4096, false),
    ];
    assert_eq!(devices, expected);
    assert!(volumes.iter().all(|v| v.path.exists()));
    held.apply(Event::Ended, "").unwrap();
    held.remove().unwrap();
    let left: Vec<_> = volumes.iter().map(|v| v.path.exists()).collect();
    assert_eq!(left, [false, false, true, true]);
}

#[test]
fn instances_of_one_launch_share_a_reservation_and_nothing_else() {
    let (_dir, store, image) = world();
    let launch = launch(&store, &image);
    let all: Vec<_> = (0..3).map(|index| launch.prepare(index).unwrap()).collect();
    for (index, held) in (0..).zip(&all) {
        assert_eq!(held.record().launch_index, index);
        assert_eq!(held.record().reservation, all[0].record().reservation);
    }
    let ids: std::collections::BTreeSet<_> = all.iter().map(|h| &h.record().volumes[0].id).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn a_root_volume_smaller_than_the_image_is_refused_and_leaves_nothing() {
    let (_dir, store, image) = world();
    let refused = launch(&store, &image)
        .root(Some(1 << 20), RootCopy::Lazy)
        .prepare(0);
    assert!(matches!(
        refused,
        Err(Error::Volume(volume::Error::TooSmall { .. }))
    ));
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn volume_requests_say_what_is_wrong() {
    for (text, part) in [
        ("0", "size"),
        ("/nowhere/x.img", "file"),
        ("12Q", "file"),
        ("", "file"),
    ] {
        let refused = text.parse::<VolumeRequest>().unwrap_err();
        assert!(refused.contains(part), "{text}: {refused}");
    }
}

#[test]
fn a_dry_run_touches_nothing() {
    let (_dir, store, image) = world();
    let plan = launch(&store, &image).plan(0).unwrap();
    assert_eq!(plan.image.name, "hello");
    assert!(!store.home().instances().exists());
}
