//! What the service knows of its instance: a tree of paths, built once at launch.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// A public key that users log in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its name.
    pub name: String,
    /// OpenSSH's one-line form.
    pub key: String,
}

/// The facts that EC2 gives an instance about itself. What is not known is absent and answers 404: nothing is invented.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceDocuments {
    /// `ami-…`
    pub ami_id: String,
    /// Position among the instances of one launch.
    pub ami_launch_index: u32,
    /// `i-…`
    pub instance_id: String,
    /// Such as `kiln.2x512`.
    pub instance_type: String,
    /// The host name.
    pub local_hostname: String,
    /// The guest's address, where the network chose it.
    pub local_ipv4: Option<Ipv4Addr>,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// The MAC address.
    pub mac: [u8; 6],
    /// Keys to log in with.
    pub public_keys: Vec<PublicKey>,
    /// Virtual name (`ami`, `root`, `ebs1`) to device.
    pub block_device_mapping: Vec<(String, String)>,
    /// `r-…`, the same for all instances of one launch.
    pub reservation_id: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// Tags that the user allowed in metadata.
    pub tags: BTreeMap<String, String>,
    /// User data, byte for byte.
    pub user_data: Option<Vec<u8>>,
}

/// Documents by path, without the version in front and without a slash at either end.
pub type Tree = BTreeMap<String, Vec<u8>>;

impl InstanceDocuments {
    /// The tree that requests walk.
    pub fn into_tree(self) -> Tree {
        let mut tree = Tree::new();
        let identity = self.identity();
        let InstanceDocuments {
            ami_id,
            ami_launch_index,
            instance_id,
            instance_type,
            local_hostname,
            local_ipv4,
            prefix,
            mac,
            public_keys,
            block_device_mapping,
            reservation_id,
            architecture: _,
            tags,
            user_data,
        } = self;
        let mut put =
            |path: String, value: String| drop(tree.insert(format!("meta-data/{path}"), value.into_bytes()));
        for (path, value) in [
            ("ami-id", ami_id),
            ("ami-launch-index", ami_launch_index.to_string()),
            ("instance-id", instance_id),
            ("instance-type", instance_type),
            ("hostname", local_hostname.clone()),
            ("local-hostname", local_hostname),
            ("reservation-id", reservation_id),
            ("placement/availability-zone", "local".to_owned()),
            ("placement/region", "local".to_owned()),
        ] {
            put(path.to_owned(), value);
        }
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let interface = format!("network/interfaces/macs/{mac}");
        put("mac".to_owned(), mac.clone());
        put(format!("{interface}/mac"), mac);
        put(format!("{interface}/device-number"), "0".to_owned());
        if let Some(address) = local_ipv4 {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let network = Ipv4Addr::from_bits(address.to_bits() & mask);
            put("local-ipv4".to_owned(), address.to_string());
            put(format!("{interface}/local-ipv4s"), address.to_string());
            put(
                format!("{interface}/subnet-ipv4-cidr-block"),
                format!("{network}/{prefix}"),
            );
        }
        for (index, PublicKey { key, .. }) in public_keys.iter().enumerate() {
            put(
                format!("public-keys/{index}/openssh-key"),
                format!("{}\n", key.trim_end()),
            );
        }
        for (name, device) in block_device_mapping {
            put(format!("block-device-mapping/{name}"), device);
        }
        for (key, value) in tags {
            // A key with a slash would look like a folder: EC2 refuses such keys for metadata.
            if !key.contains('/') {
                put(format!("tags/instance/{key}"), value);
            }
        }
        if !public_keys.is_empty() {
            let names = public_keys
                .iter()
                .enumerate()
                .map(|(index, key)| format!("{index}={}", key.name));
            put("public-keys/".to_owned(), names.collect::<Vec<_>>().join("\n"));
        }
        tree.insert(
            "dynamic/instance-identity/document".to_owned(),
            identity.into_bytes(),
        );
        tree.extend(user_data.map(|data| ("user-data".to_owned(), data)));
        tree
    }

    fn identity(&self) -> String {
        let document = serde_json::json!({
            "architecture": self.architecture,
            "availabilityZone": "local",
            "imageId": self.ami_id,
            "instanceId": self.instance_id,
            "instanceType": self.instance_type,
            "privateIp": self.local_ipv4,
            "region": "local",
            "version": "2017-09-30",
        });
        format!("{document:#}")
    }
}

/// What is at `path` (no version, no slash in front): a document, or the names in a folder, one a line, folders with a slash.
pub fn look_up(tree: &Tree, path: &str) -> Option<Vec<u8>> {
    if let Some(document) = tree.get(path) {
        return Some(document.clone());
    }
    let folder = path.trim_end_matches('/');
    // A folder whose listing has a form of its own keeps it under its name with a slash.
    if let Some(listing) = tree.get(&format!("{folder}/")) {
        return Some(listing.clone());
    }
    let prefix = if folder.is_empty() {
        String::new()
    } else {
        format!("{folder}/")
    };
    let mut names: Vec<String> = Vec::new();
    for below in tree.keys().filter_map(|key| key.strip_prefix(&prefix)) {
        let name = below.split_inclusive('/').next().unwrap_or_default();
        if names.last().is_none_or(|last| last != name) {
            names.push(name.to_owned());
        }
    }
    (!names.is_empty()).then(|| names.join("\n").into_bytes())
}
