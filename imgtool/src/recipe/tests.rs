use super::check::parse;
use super::*;
use crate::advice::Advice as _;

const SCHEMA: &str = include_str!("../../../docs/recipe.schema.json");
const EVERY_KEY: &str = include_str!("every-key.toml");

#[test]
fn the_shortest_recipe_has_useful_defaults() {
    let recipe = parse("name = 'x'").unwrap();
    assert_eq!(recipe.arch, Architecture::ALL);
    assert_eq!((recipe.variant, recipe.init()), (Variant::Minbase, "guest-init"));
    assert_eq!(recipe.root_size, Size(None));
    assert_eq!(
        recipe.kernel_package(Architecture::Arm64).as_deref(),
        Some("linux-image-cloud-arm64")
    );
    // 32-bit programs run on the 64-bit kernel.
    assert_eq!(
        recipe.kernel_package(Architecture::I386).as_deref(),
        Some("linux-image-cloud-amd64")
    );
}

#[test]
fn a_32_bit_kernel_is_for_images_of_32_bit_programs_only() {
    let text = "name = 'x'\nmodules = ['a [i386]', 'b [amd64]']\nkernel.package = 'linux-image-686-pae:i386'";
    let recipe = parse(&format!("{text}\narch = ['i386']")).unwrap();
    assert_eq!(recipe.kernel_arch(Architecture::I386), "i386");
    assert_eq!(recipe.kernel_target(Architecture::I386), Target::I686);
    assert_eq!(recipe.modules_for(Architecture::I386), ["a"]);
    for arch in ["", "\narch = ['x86_64', 'i386']"] {
        let error = refused(&format!("{text}{arch}"));
        assert!(
            error.contains("kernel.package") && error.contains("NAME:i386"),
            "{error}"
        );
    }
    let error = refused("name = 'x'\narch = ['i386']\nkernel.package = 'k:arm64'");
    assert!(error.contains("another architecture"), "{error}");
}

#[test]
fn a_module_may_be_for_one_architecture() {
    let recipe = parse("name = 'x'\nmodules = ['kvm-amd [amd64]', 'tun', 'loop [arm64 amd64]']").unwrap();
    assert_eq!(
        recipe.modules_for(Architecture::X86_64),
        ["kvm-amd", "tun", "loop"]
    );
    assert_eq!(recipe.modules_for(Architecture::Arm64), ["tun", "loop"]);
}

#[test]
fn a_package_may_be_for_one_architecture() {
    let recipe =
        parse("name = 'x'\npackages = ['strace', 'qemu-system-x86 (>= 1:8) [amd64]', 'a | b']").unwrap();
    assert_eq!(
        recipe.packages_for(Architecture::X86_64),
        ["strace", "qemu-system-x86 (>= 1:8)", "a | b"]
    );
    assert_eq!(recipe.packages_for(Architecture::Arm64), ["strace", "a | b"]);
}

#[test]
fn an_unknown_key_names_the_nearest() {
    for (text, near) in [
        ("name = 'x'\npackges = []", "`packages`"),
        ("name = 'x'\ncommandline = ''", "`command-line`"),
        ("name = 'x'\n[distribution]\nsuit = 'sid'", "`suite`"),
        ("name = 'x'\n[[users]]\nname = 'a'\nssh-key = []", "`ssh-keys`"),
        ("name = 'x'\nvariant = 'minbas'", "`minbase`"),
    ] {
        let (message, advice) = parse(text).unwrap_err();
        assert!(advice.contains(near), "{text}: {advice}");
        assert!(message.contains("line"), "{message}");
    }
    let (_, advice) = parse("name = 'x'\nbootloader = 'grub'").unwrap_err();
    assert!(advice.contains("packages"), "{advice}");
}

fn refused(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    std::fs::write(&path, text).unwrap();
    Recipe::load(&path).unwrap_err().report()
}

#[test]
fn values_are_checked() {
    for (text, word) in [
        ("name = 'a/b'", "name"),
        ("name = 'x'\narch = []", "arch"),
        ("name = 'x'\ncreated = 'today'", "created"),
        ("name = 'x'\ninit = 'systemd'", "init"),
        ("name = 'x'\nvariant = 'extract'", "packages"),
        ("name = 'x'\ncpus = 0", "cpus"),
        ("name = 'x'\nkernel = { path = 'a', build = 'microvm' }", "kernel"),
        ("name = 'x'\n[[files]]\npath = '/a'", "files"),
        ("name = 'x'\n[[files]]\npath = '/a/../b'\ncontent = ''", "files"),
        (
            "name = 'x'\n[[users]]\nname = 'a'\n[[users]]\nname = 'a'",
            "twice",
        ),
        (
            "name = 'x'\n[[users]]\nname = 'a'\nssh-keys = [\"a\\nb\"]",
            "users",
        ),
        (
            "name = 'x'\n[[services]]\nname = 'a'\ncommand = ['sh']",
            "services",
        ),
        ("name = 'x'\nports = ['http']", "port"),
        ("name = 'x'\nhostname = 'bad host_name!'", "hostname"),
        ("name = 'x'\ncreated = '1969-12-31T00:00:00Z'", "1970"),
        ("name = 'x'\npackages = ['strace [x86_64]']", "architecture"),
        ("name = 'x'\nmodules = ['tun [!arm64]']", "architecture"),
        (
            "name = 'x'\nmodules = ['tun']\nkernel = { build = 'microvm' }",
            "modules",
        ),
        ("name = 'x'\nmemory = '8M'", "memory"),
        ("name = 'x'\nroot-size = '20T'", "at most 1T"),
        ("name = 'x'\ncommand-line = \"a\\nb\"", "command-line"),
        (
            "name = 'x'\n[[block-devices]]\nname = '/dev/vda'\nsize = '1G'",
            "root",
        ),
        (
            "name = 'x'\n[[block-devices]]\nname = 'sdb'\nsize = '1G'",
            "block-devices",
        ),
        (
            "name = 'x'\n[[block-devices]]\nname = '/dev/sdb'\nsize = 0",
            "size",
        ),
    ] {
        let message = refused(text);
        assert!(
            message.contains(word) && message.contains("try:"),
            "{text}: {message}"
        );
    }
}

#[test]
fn relative_paths_begin_at_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    std::fs::write(&path, "name = 'x'").unwrap();
    let recipe = Recipe::load(&path).unwrap();
    assert_eq!(recipe.resolve_path(Path::new("a/b")), dir.path().join("a/b"));
}

/// The schema that editors use and the structs say the same: every key of a recipe that sets every key is
/// described, and nothing else is.
#[test]
fn the_schema_describes_every_key() {
    let recipe = parse(EVERY_KEY).unwrap_or_else(|(message, _)| panic!("{message}"));
    let value = serde_json::to_value(&recipe).unwrap();
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    compare(&value, &schema, &schema, "recipe");
}

fn compare(value: &serde_json::Value, schema: &serde_json::Value, root: &serde_json::Value, at: &str) {
    let schema = match schema.get("$ref").and_then(|r| r.as_str()) {
        Some(reference) => root
            .pointer(&reference[1..])
            .unwrap_or_else(|| panic!("{at}: {reference}")),
        None => schema,
    };
    match value {
        serde_json::Value::Object(fields) if schema.get("properties").is_some() => {
            let properties = schema["properties"].as_object().unwrap();
            let described: Vec<_> = properties.keys().filter(|key| *key != "$schema").collect();
            for key in fields.keys() {
                assert!(properties.contains_key(key), "{at}: the schema lacks {key}");
            }
            for key in described {
                assert!(fields.contains_key(key), "{at}: {key} is in the schema only");
                assert!(!fields[key].is_null(), "{at}: every-key.toml does not set {key}");
                compare(&fields[key], &properties[key], root, &format!("{at}.{key}"));
            }
            assert_eq!(schema["additionalProperties"], false, "{at}");
        }
        serde_json::Value::Array(items) => {
            assert!(!items.is_empty(), "{at}: every-key.toml leaves it empty");
            items
                .iter()
                .for_each(|item| compare(item, &schema["items"], root, &format!("{at}[]")));
        }
        serde_json::Value::String(text) => {
            if let Some(allowed) = schema.get("enum").and_then(|e| e.as_array()) {
                assert!(allowed.contains(value), "{at}: {text}");
            }
        }
        _ => {}
    }
}
