//! Which kernel modules go into the initramfs, and in which order they load.
//!
//! The closure is computed: `modules.dep` where the package brings it (Debian's do not, `depmod` writes it on
//! installation), else from what each module says in its `.modinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::{Error, modinfo, modsig};
use crate::advice::Reason;
use crate::decompress;
use crate::tree::{Kind, NodeId, Tree, show};

/// What an instance needs before its root is mounted, and for its agent. A kernel may have any of them built
/// in, and an older one may not know some: those that do not exist are left out.
const ESSENTIAL: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "virtio_net",
    "virtio_balloon",
    "ext4",
];

/// Largest module file, compressed or not: the largest driver that Debian has is below 30 MB.
const MAX_MODULE: u64 = 128 << 20;
/// Largest index file such as `modules.dep`, and largest configuration of a kernel (Debian's has 250 KB).
const MAX_INDEX: u64 = 16 << 20;

/// A module, decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name with underscores, as `lsmod` prints it.
    pub name: String,
    /// The raw `.ko`, without its signature where the kernel loads it without.
    pub bytes: Vec<u8>,
}

/// The modules of `ESSENTIAL` and those `wanted`, with all that they depend on, each after its
/// dependencies, for a kernel that gets `command_line`.
pub fn closure(
    tree: &Tree,
    release: &str,
    wanted: &[String],
    command_line: &str,
) -> Result<Vec<Module>, Error> {
    let library = Library::new(tree, release)?;
    let mut order = Order {
        library: &library,
        done: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in ESSENTIAL {
        if library.files.contains_key(*name) {
            order.load(name)?;
        }
    }
    for name in wanted {
        order.load(&normal(name))?;
    }
    let mut modules = order.modules;
    // A kernel whose configuration is not known may insist on signatures.
    let configuration = text(tree, &format!("boot/config-{release}"))?;
    if configuration.is_some_and(|configuration| modsig::is_dispensable(&configuration, command_line)) {
        for module in &mut modules {
            modsig::remove(&mut module.bytes);
        }
    }
    Ok(modules)
}

/// The text of a file, if there is one.
fn text(tree: &Tree, path: &str) -> Result<Option<String>, Error> {
    let Some(id) = tree.find_followed(path.as_bytes())? else {
        return Ok(None);
    };
    let Kind::File(content) = &tree.node(id).kind else {
        return Ok(None);
    };
    let bytes = content.read(MAX_INDEX).map_err(|source| Error::Read {
        what: path.to_owned(),
        source,
    })?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The modules that a kernel package brings.
struct Library<'a> {
    tree: &'a Tree,
    release: &'a str,
    files: BTreeMap<String, (Vec<u8>, NodeId)>,
    builtin: BTreeSet<String>,
    /// From `modules.dep`: direct and indirect dependencies by name. Empty when there is none.
    depends: BTreeMap<String, Vec<String>>,
}

impl<'a> Library<'a> {
    fn new(tree: &'a Tree, release: &'a str) -> Result<Self, Error> {
        let mut library = Self {
            tree,
            release,
            files: BTreeMap::new(),
            builtin: BTreeSet::new(),
            depends: BTreeMap::new(),
        };
        let directory = format!("usr/lib/modules/{release}");
        let Some(top) = tree.find_followed(directory.as_bytes())? else {
            return Ok(library);
        };
        let mut stack = vec![(directory.into_bytes(), top)];
        while let Some((path, id)) = stack.pop() {
            for (name, child) in tree.children(id) {
                let below = [&path[..], b"/", name].concat();
                let node = tree.node(child);
                if node.is_dir() {
                    stack.push((below, child));
                } else if let Some(module) = module_name(name)
                    && matches!(node.kind, Kind::File(_))
                {
                    library.files.insert(module, (below, child));
                }
            }
        }
        let builtin = library.index(top, b"modules.builtin")?;
        library.builtin = builtin
            .lines()
            .filter_map(|line| module_name(file_name(line).as_bytes()))
            .collect();
        for line in library.index(top, b"modules.dep")?.lines() {
            if let Some((file, needs)) = line.split_once(':')
                && let Some(name) = module_name(file_name(file).as_bytes())
            {
                // modules.dep lists the nearest dependency first; loading needs the farthest first.
                let needs = needs.split_whitespace().rev();
                let needs = needs
                    .filter_map(|file| module_name(file_name(file).as_bytes()))
                    .collect();
                library.depends.insert(name, needs);
            }
        }
        Ok(library)
    }

    fn index(&self, top: NodeId, name: &[u8]) -> Result<String, Error> {
        let Some(id) = self.tree.child(top, name) else {
            return Ok(String::new());
        };
        let Kind::File(content) = &self.tree.node(id).kind else {
            return Ok(String::new());
        };
        let bytes = content.read(MAX_INDEX).map_err(|source| Error::Read {
            what: String::from_utf8_lossy(name).into_owned(),
            source,
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The module's bytes and the names of what must be loaded before it.
    fn read(&self, name: &str) -> Result<(Vec<u8>, Vec<String>), Error> {
        let Some((path, id)) = self.files.get(name) else {
            return Err(self.missing(name));
        };
        let Kind::File(content) = &self.tree.node(*id).kind else {
            return Err(self.missing(name));
        };
        let damaged = |why: Reason| Error::Module {
            path: show(path),
            why,
        };
        let file = content.read(MAX_MODULE).map_err(|source| Error::Read {
            what: show(path),
            source,
        })?;
        let bytes = decompress(path, file).map_err(|e| damaged(e.into()))?;
        let mut needs = match self.depends.get(name) {
            Some(needs) => needs.clone(),
            None => declared(&bytes).map_err(|why| damaged(why.into()))?,
        };
        let soft = soft(&bytes).map_err(|why| damaged(why.into()))?;
        needs.extend(soft.iter().filter_map(|need| self.implementing(need)));
        Ok((bytes, needs))
    }

    /// The module that a soft dependency means, if there is one: of that name, or the portable one of the
    /// algorithm of that name (`crc32c_generic` for `crc32c` or `crypto-crc32c`).
    fn implementing(&self, need: &str) -> Option<String> {
        let algorithm = need.strip_prefix("crypto_").unwrap_or(need);
        [need.to_owned(), format!("{algorithm}_generic")]
            .into_iter()
            .find(|name| self.files.contains_key(name))
    }

    fn missing(&self, name: &str) -> Error {
        let near = crate::spelling::nearest(name, self.files.keys().map(String::as_str));
        let near = near
            .map(|near| format!(", the nearest is `{near}`"))
            .unwrap_or_default();
        Error::NoModule {
            name: name.into(),
            release: self.release.into(),
            near,
        }
    }
}

/// What `depends=` names.
fn declared(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let mut needs: Vec<String> = Vec::new();
    for list in modinfo::values(module, "depends")? {
        needs.extend(list.split(',').filter(|name| !name.is_empty()).map(normal));
    }
    Ok(needs)
}

/// What `softdep=` names before `post:`: what is asked for by a name at run time, as ext4 asks for its
/// checksum, and nothing in the initramfs would load then.
fn soft(module: &[u8]) -> Result<Vec<String>, &'static str> {
    let mut needs = Vec::new();
    for list in modinfo::values(module, "softdep")? {
        let words = list.split_whitespace().skip_while(|word| *word != "pre:").skip(1);
        needs.extend(words.take_while(|word| *word != "post:").map(normal));
    }
    Ok(needs)
}

struct Order<'a> {
    library: &'a Library<'a>,
    done: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order<'_> {
    /// Add a module after its dependencies. Iterative, as a damaged package could make them circular or deep:
    /// a name is opened once only.
    fn load(&mut self, name: &str) -> Result<(), Error> {
        let mut stack = vec![(name.to_owned(), None)];
        while let Some((name, opened)) = stack.pop() {
            if let Some(bytes) = opened {
                self.modules.push(Module { name, bytes });
                continue;
            }
            let builtin = !self.library.files.contains_key(&name) && self.library.builtin.contains(&name);
            if builtin || !self.done.insert(name.clone()) {
                continue;
            }
            let (bytes, needs) = self.library.read(&name)?;
            stack.push((name, Some(bytes)));
            stack.extend(needs.into_iter().rev().map(|need| (need, None)));
        }
        Ok(())
    }
}

/// Names in files have dashes or underscores; modules know only underscores.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The module in a file of this name; nothing for other files.
fn module_name(file: &[u8]) -> Option<String> {
    let file = std::str::from_utf8(file).ok()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|end| file.strip_suffix(end))?;
    Some(normal(stem))
}

fn decompress(path: &[u8], file: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut limited = |reader: &mut dyn Read| reader.take(MAX_MODULE + 1).read_to_end(&mut out);
    if path.ends_with(b".xz") {
        limited(&mut decompress::xz(&file[..])?)?;
    } else if path.ends_with(b".zst") {
        limited(&mut zstd::stream::read::Decoder::with_buffer(&file[..])?)?;
    } else if path.ends_with(b".gz") {
        limited(&mut flate2::bufread::GzDecoder::new(&file[..]))?;
    } else {
        return Ok(file);
    }
    if out.len() as u64 > MAX_MODULE {
        return Err(std::io::Error::other("it decompresses to more than 128 MiB"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Meta};

    const RELEASE: &str = "6.12.0-test";

    fn put(tree: &mut Tree, path: &str, bytes: Vec<u8>) {
        let path = format!("usr/lib/modules/{RELEASE}/{path}");
        let meta = Meta::new(0o755, 0, 0, 0);
        tree.create_dirs(path.rsplit_once('/').unwrap().0.as_bytes(), &meta)
            .unwrap();
        tree.insert(path.as_bytes(), Kind::File(Content::bytes(bytes)), meta)
            .unwrap();
    }

    fn kernel() -> Tree {
        let mut tree = Tree::new();
        let module = |needs: &str| modinfo::tests::module(&[&format!("depends={needs}")]);
        put(&mut tree, "kernel/drivers/virtio/virtio_mmio.ko", module(""));
        let mut xz = liblzma::read::XzEncoder::new(std::io::Cursor::new(module("net-failover,virtio")), 1);
        let mut compressed = Vec::new();
        xz.read_to_end(&mut compressed).unwrap();
        put(&mut tree, "kernel/drivers/net/virtio_net.ko.xz", compressed);
        let zst = zstd::encode_all(&module("failover")[..], 1).unwrap();
        put(&mut tree, "kernel/drivers/net/net_failover.ko.zst", zst);
        put(&mut tree, "kernel/net/core/failover.ko", module(""));
        put(&mut tree, "kernel/fs/overlayfs/overlay.ko", module(""));
        put(
            &mut tree,
            "modules.builtin",
            b"kernel/drivers/virtio/virtio.ko\n".to_vec(),
        );
        tree
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|m| m.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_uncompressed() {
        let modules = closure(&kernel(), RELEASE, &[], "").unwrap();
        assert_eq!(
            names(&modules),
            ["virtio_mmio", "failover", "net_failover", "virtio_net"]
        );
        assert!(modules.iter().all(|m| m.bytes.starts_with(b"\x7fELF")));
    }

    #[test]
    fn wanted_modules_are_added_and_builtin_ones_are_not_missed() {
        let wanted = ["overlay".into(), "virtio".into(), "virtio-net".into()];
        let modules = closure(&kernel(), RELEASE, &wanted, "").unwrap();
        assert_eq!(names(&modules)[4..], ["overlay"]);
    }

    #[test]
    fn a_typing_error_names_the_nearest() {
        let error = closure(&kernel(), RELEASE, &["overly".into()], "")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`overly`") && error.contains("`overlay`"),
            "{error}"
        );
    }

    #[test]
    fn modules_dep_is_used_when_there_is_one() {
        let mut tree = kernel();
        let line = "kernel/fs/overlayfs/overlay.ko: kernel/net/core/failover.ko\n";
        put(&mut tree, "modules.dep", line.as_bytes().to_vec());
        let modules = closure(&tree, RELEASE, &["overlay".into()], "").unwrap();
        assert!(names(&modules).contains(&"overlay"));
        let place = |name| names(&modules).iter().position(|n| *n == name).unwrap();
        assert!(place("failover") < place("overlay"));
    }

    #[test]
    fn signatures_are_left_out_where_the_kernel_does_not_insist() {
        const SIGNED: &[u8] = b"SIGNATURE\0\0\x02\0\0\0\0\0\0\0\0\x09~Module signature appended~\n";
        let mut tree = kernel();
        let plain = modinfo::tests::module(&["depends="]);
        put(&mut tree, "kernel/a.ko", [&plain, SIGNED].concat());
        let last = |tree: &Tree, command_line| {
            let modules = closure(tree, RELEASE, &["a".into()], command_line).unwrap();
            modules.last().unwrap().bytes.clone()
        };
        assert!(
            last(&tree, "").ends_with(SIGNED),
            "its configuration is not known"
        );
        let meta = Meta::new(0o755, 0, 0, 0);
        tree.create_dirs(b"boot", &meta).unwrap();
        let configuration = Kind::File(Content::bytes(b"CONFIG_MODULE_SIG=y\n".to_vec()));
        let path = format!("boot/config-{RELEASE}");
        tree.insert(path.as_bytes(), configuration, meta).unwrap();
        assert_eq!(last(&tree, "quiet"), plain);
        assert!(last(&tree, "quiet module.sig_enforce=1").ends_with(SIGNED));
    }

    #[test]
    fn what_a_module_asks_for_by_name_comes_before_it() {
        let mut tree = kernel();
        let info = [
            "depends=",
            "softdep=pre: crypto-crc32c net-failover gone post: overlay",
        ];
        put(&mut tree, "kernel/a.ko", modinfo::tests::module(&info));
        let generic = modinfo::tests::module(&["depends="]);
        put(&mut tree, "kernel/crypto/crc32c_generic.ko", generic);
        let modules = closure(&tree, RELEASE, &["a".into()], "").unwrap();
        assert_eq!(names(&modules)[4..], ["crc32c_generic", "a"]);
        assert!(names(&modules)[..4].contains(&"net_failover"));
    }

    #[test]
    fn circular_dependencies_end() {
        let mut tree = kernel();
        put(&mut tree, "kernel/a.ko", modinfo::tests::module(&["depends=b"]));
        put(&mut tree, "kernel/b.ko", modinfo::tests::module(&["depends=a"]));
        let modules = closure(&tree, RELEASE, &["a".into()], "").unwrap();
        assert_eq!(names(&modules)[4..], ["b", "a"]);
    }

    #[test]
    fn a_kernel_without_modules_needs_none() {
        assert!(closure(&Tree::new(), RELEASE, &[], "").unwrap().is_empty());
    }
}
