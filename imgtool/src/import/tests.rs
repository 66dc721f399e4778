use std::io::Write;

use super::*;
use crate::tree::Kind;

const MACHINE: ami::Architecture = ami::Architecture::X86_64;

pub(super) fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(if path.ends_with('/') { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_mtime(5);
        header.set_uid(7);
        header.set_gid(8);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn import(bytes: &[u8]) -> Result<Imported, Error> {
    import_for(bytes, MACHINE)
}

fn import_for(bytes: &[u8], machine: ami::Architecture) -> Result<Imported, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("source");
    std::fs::write(&path, bytes).unwrap();
    load(&path, machine, dir.path())
}

pub(super) fn names(tree: &Tree) -> Vec<String> {
    tree.walk()
        .skip(1)
        .map(|(path, _)| String::from_utf8(path).unwrap())
        .collect()
}

pub(super) fn text(tree: &Tree, path: &str) -> String {
    let id = tree.find(path.as_bytes()).unwrap().unwrap();
    let Kind::File(content) = &tree.node(id).kind else {
        panic!("{path}")
    };
    String::from_utf8(content.read(1 << 20).unwrap()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_tar_is_a_root_whatever_compresses_it() {
    let plain = tar(&[("./etc/", ""), ("./etc/hostname", "box"), ("./new/dir/file", "x")]);
    let zst = zstd::encode_all(&plain[..], 1).unwrap();
    for bytes in [&plain, &gzip(&plain), &zst] {
        let Imported { tree, config } = import(bytes).unwrap();
        assert_eq!(config, None);
        assert_eq!(
            names(&tree),
            ["etc", "etc/hostname", "new", "new/dir", "new/dir/file"]
        );
        assert_eq!(text(&tree, "etc/hostname"), "box");
        let meta = &tree.node(tree.find(b"etc/hostname").unwrap().unwrap()).meta;
        assert_eq!((meta.uid, meta.gid, meta.mtime), (7, 8, 5));
    }
}

#[test]
fn a_path_out_of_the_root_is_refused() {
    let mut bytes = tar(&[("./aa/evil", "x")]);
    bytes[..9].copy_from_slice(b"./../evil");
    // The header's checksum, which has to be right for the path to be looked at.
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|b| u32::from(*b)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let error = import(&bytes).unwrap_err().report();
    assert!(error.contains(".."), "{error}");
}

pub(super) fn docker(layers: &[&[u8]]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("blobs/sha256/{}", crate::store::Sha256::of(layer));
        add(&name, layer);
        names.push(name);
    }
    let config = serde_json::json!({ "architecture": "amd64", "config": {
        "Env": ["PATH=/bin", "A=b=c"], "Entrypoint": ["/bin/server"], "Cmd": ["-v"],
        "WorkingDir": "/srv", "User": "www", "ExposedPorts": { "80/tcp": {} },
    }});
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("blobs/sha256/{}", crate::store::Sha256::of(&config));
    add(&config_name, &config);
    let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": ["a:b"], "Layers": names }]);
    add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    builder.into_inner().unwrap()
}

#[test]
fn layers_cover_and_white_out_those_below() {
    let below = tar(&[
        ("etc/", ""),
        ("etc/a", "old"),
        ("etc/b", "b"),
        ("opt/", ""),
        ("opt/x", "x"),
        ("dir/f", "f"),
    ]);
    let above = tar(&[
        ("etc/a", "new"),
        ("etc/.wh.b", ""),
        ("opt/.wh..wh..opq", ""),
        ("opt/y", "y"),
        ("dir", "file"),
    ]);
    let Imported { tree, config } = import(&docker(&[&below, &gzip(&above)])).unwrap();
    assert_eq!(names(&tree), ["dir", "etc", "etc/a", "opt", "opt/y"]);
    assert_eq!(
        (text(&tree, "etc/a"), text(&tree, "dir")),
        ("new".into(), "file".into())
    );
    let config = config.unwrap();
    assert_eq!(config.command, ["/bin/server", "-v"]);
    assert_eq!(config.environment["A"], "b=c");
    assert_eq!((config.directory.as_str(), config.user.as_str()), ("/srv", "www"));
    assert_eq!(config.ports, ["80/tcp"]);
    assert_eq!(config.architecture, Some(MACHINE));
}

#[test]
fn a_layer_with_another_digest_is_refused() {
    let layer = tar(&[("etc/a", "0123456789")]);
    let mut bytes = docker(&[&layer]);
    let at = bytes.windows(10).position(|w| w == b"0123456789").unwrap();
    bytes[at] = b'x';
    let error = import(&bytes).unwrap_err().report();
    assert!(error.contains("has the digest"), "{error}");
}

#[test]
fn the_oci_layout_is_followed_to_the_right_machine() {
    let layer = tar(&[("hello", "world")]);
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let digest = crate::store::Sha256::of(&bytes).to_string();
        files.push((format!("blobs/sha256/{digest}"), bytes));
        format!("sha256:{digest}")
    };
    let layer = blob(layer);
    let config = blob(br#"{"config":{"Cmd":["/hello"]}}"#.to_vec());
    let manifest = serde_json::json!({ "config": { "digest": config }, "layers": [{ "digest": layer }] });
    let manifest = blob(serde_json::to_vec(&manifest).unwrap());
    let index = serde_json::json!({ "manifests": [
        { "digest": "sha256:0", "platform": { "architecture": "s390x", "os": "linux" } },
        { "digest": manifest, "platform": { "architecture": "amd64", "os": "linux" } },
    ]});
    let inner = blob(serde_json::to_vec(&index).unwrap());
    let media = "application/vnd.oci.image.index.v1+json";
    let outer = serde_json::json!({ "manifests": [{ "digest": inner, "mediaType": media }] });
    files.push(("index.json".into(), serde_json::to_vec(&outer).unwrap()));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let entries: Vec<(&str, String)> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), String::from_utf8_lossy(bytes).into_owned()))
        .collect();
    let entries: Vec<(&str, &str)> = entries
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    let Imported { tree, config } = import(&tar(&entries)).unwrap();
    assert_eq!(names(&tree), ["hello"]);
    let config = config.unwrap();
    assert_eq!(
        (&*config.command, config.architecture),
        (&["/hello".to_owned()][..], None)
    );
    let error = import_for(&tar(&entries), ami::Architecture::I386)
        .unwrap_err()
        .report();
    for word in ["no image for i386", "linux/s390x, linux/amd64", "--arch"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_raw_ext4_is_read_in_place() {
    use crate::compose::ext4::{FileSystem, Settings, plan};
    let Imported { tree, .. } = import(&tar(&[("etc/", ""), ("etc/hostname", "box")])).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let plan = plan(&tree, Settings { size: None, epoch: 0 }).unwrap();
    file.set_len(plan.length()).unwrap();
    plan.write(&file, 0, &crate::progress::Quiet).unwrap();
    let read = load(&path, MACHINE, dir.path()).unwrap();
    assert_eq!(text(&read.tree, "etc/hostname"), "box");
}

#[test]
fn unknown_formats_are_refused() {
    assert!(import(&[7; 5000]).is_err());
    assert!(import(&docker(&[b"not a tar at all, but long enough"])).is_err());
}

/// GNU tar writes the time as a two's complement.
#[test]
fn a_file_may_be_older_than_1970() {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    let mtime = &mut header.as_old_mut().mtime;
    mtime.fill(0xff);
    mtime[4..].copy_from_slice(&(-1000i64).to_be_bytes());
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "old", &b""[..]).unwrap();
    let imported = import(&builder.into_inner().unwrap()).unwrap();
    let id = imported.tree.find(b"old").unwrap().unwrap();
    assert_eq!(imported.tree.node(id).meta.mtime, -1000);
}
