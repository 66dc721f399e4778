//! What a person writes or brings: recipes, lock files, archives of other tools' images.

use imgtool::import;
use imgtool::lock::Lock;
use imgtool::recipe::Recipe;

use crate::input::Input;
use crate::scratch;

/// The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => recipe(input.rest()),
        1 => lock(input.rest()),
        2 => archive(input.rest()),
        _ => archive(&container(&mut input)),
    }
}

fn recipe(bytes: &[u8]) {
    let (_folder, path) = scratch::file("recipe.toml", bytes);
    let Ok(recipe) = Recipe::load(&path) else { return };
    recipe.packages_for(ami::Architecture::I386);
    recipe.modules_for(ami::Architecture::I386);
    recipe.all_ports();
    for arch in &recipe.arch {
        recipe.kernel_package(*arch);
        imgtool::lock::inputs(&recipe, *arch, None);
    }
}

/// A lock file that is read is one that can be written.
fn lock(bytes: &[u8]) {
    let (folder, path) = scratch::file("recipe.lock", bytes);
    let Ok(lock) = Lock::load(&path) else { return };
    let again = folder.path().join("again.lock");
    lock.save(&again).expect("what was read can be written");
    Lock::load(&again).expect("what was written can be read");
}

fn archive(bytes: &[u8]) {
    let (folder, path) = scratch::file("archive", bytes);
    if let Ok(imported) = import::load(&path, ami::Architecture::X86_64, folder.path()) {
        // Nothing in the tree is named so that it could lie outside.
        imported.tree.len();
    }
}

/// An archive of a container image whose one layer is the rest of the input.
fn container(input: &mut Input<'_>) -> Vec<u8> {
    let len = usize::from(input.half());
    let config = match len % 2 {
        0 => br#"{"config":{"Env":["A=b"],"Cmd":["x"],"ExposedPorts":{"80/tcp":{}}}}"#,
        _ => input.bytes(len),
    };
    let manifest = br#"[{"Config":"config.json","RepoTags":["a:b"],"Layers":["layer.tar"]}]"#;
    let mut archive = Vec::new();
    for (name, content) in [
        ("manifest.json", manifest.as_slice()),
        ("config.json", config),
        ("layer.tar", Input::new(input.bytes(usize::MAX)).rest()),
    ] {
        archive.extend(header(name, content.len()));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// A header of the form that POSIX calls ustar.
fn header(name: &str, len: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(124, &format!("{len:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
