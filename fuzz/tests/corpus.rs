//! Runs the committed inputs through the targets, so that defects found by a fuzzer stay fixed.

use std::fs;
use std::path::Path;

use kiln_fuzz::TARGETS;

/// Bytes of all committed inputs.
const MAX_CORPUS: u64 = 1 << 20;

fn replay(name: &str) {
    let target = kiln_fuzz::target(name).expect("a target of that name");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("every target has a corpus") {
        let path = entry.expect("the corpus can be listed").path();
        let input = fs::read(&path).expect("the corpus can be read");
        // Captured, and shown when the target panics.
        println!("{}", path.display());
        target(&input);
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
    target(&[]);
}

#[test]
fn agent() {
    replay("agent");
}

#[test]
fn ec2_request() {
    replay("ec2_request");
}

#[test]
fn image() {
    replay("image");
}

#[test]
fn net() {
    replay("net");
}

#[test]
fn packages() {
    replay("packages");
}

#[test]
fn platform() {
    replay("platform");
}

#[test]
fn recipe() {
    replay("recipe");
}

#[test]
fn snapshot() {
    replay("snapshot");
}

#[test]
fn softcpu() {
    replay("softcpu");
}

#[test]
fn virtio() {
    replay("virtio");
}

#[test]
fn vsock() {
    replay("vsock");
}

#[test]
fn every_target_is_replayed_and_the_corpus_is_small() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut folders = Vec::new();
    let mut total = 0;
    for folder in fs::read_dir(corpus).unwrap().map(Result::unwrap) {
        folders.push(folder.file_name().into_string().unwrap());
        for input in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            total += input.metadata().unwrap().len();
        }
    }
    folders.sort();
    assert!(TARGETS.iter().map(|(name, _)| *name).eq(folders.iter()));
    for name in folders {
        let call = format!("replay(\"{name}\");");
        assert!(
            include_str!("corpus.rs").contains(&call),
            "{name} is not replayed"
        );
    }
    assert!(total <= MAX_CORPUS, "the inputs have {total} bytes in all");
}
