//! The documents of an instance: a tree of paths, built once at launch.
//!
//! The categories are those that EC2 documents. A category is served when Kiln has a value for it; for an
//! instance without it (an IAM role, a public address, a spot request) EC2 answers 404 as well.
//! Kiln has no region and zone, account, partition, VPC, subnet and security group. Their values are constants,
//! in the form that the tools which parse them expect, and programs that describe the instance elsewhere take
//! them from here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The region: one that every client knows, so that none refuses it.
pub const REGION: &str = "us-east-1";
/// The zone: the region and one letter. botocore and cloud-init cut that off to get the region.
pub const ZONE: &str = "us-east-1a";
/// The zone's name that is the same in all accounts.
pub const ZONE_ID: &str = "use1-az1";
/// The VPC and the subnet that fills it. Each instance has a network of its own, and all have the same
/// addresses.
pub const VPC: &str = "vpc-0000000000000a000";
/// The subnet.
pub const SUBNET: &str = "subnet-0000000000000a000";
/// The id of the security group.
pub const SECURITY_GROUP_ID: &str = "sg-0000000000000a000";
/// Twelve digits.
pub const ACCOUNT: &str = "000000000000";
/// What Amazon resource names begin with (`arn:aws:`).
const PARTITION: &str = "aws";
/// The domain of that partition's services.
const DOMAIN: &str = "amazonaws.com";
/// What a launch without one gets in EC2.
pub const SECURITY_GROUP: &str = "default";
/// The version of the identity document's form.
const IDENTITY_VERSION: &str = "2017-09-30";

/// A public key that users log in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Its name.
    pub name: String,
    /// OpenSSH's one-line form.
    pub key: String,
}

/// The facts that EC2 gives an instance about itself. What is not known is absent and answers 404.
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
    /// The address that it is reached by from outside, if it has one.
    pub public_ipv4: Option<Ipv4Addr>,
    /// Ids and names of its security groups; the default one if there are none.
    pub security_groups: Vec<(String, String)>,
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
    /// Seconds since 1970 at the launch.
    pub launched: u64,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// Tags that the user allowed in metadata.
    pub tags: BTreeMap<String, String>,
    /// User data, byte for byte.
    pub user_data: Option<Vec<u8>>,
}

/// Documents by path, without the version in front. A folder whose listing has a form of its own has it under
/// its name with a slash.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// The folder of the tags.
const TAGS: &str = "meta-data/tags/instance/";

/// The tree while it grows.
struct Builder(Tree);

impl Builder {
    fn put(&mut self, path: &str, value: impl Into<Vec<u8>>) {
        self.0.insert(path.to_owned(), value.into());
    }

    fn meta(&mut self, path: &str, value: impl Into<Vec<u8>>) {
        self.put(&format!("meta-data/{path}"), value);
    }
}

impl InstanceDocuments {
    /// Those of some instance, for tests.
    pub fn example() -> InstanceDocuments {
        InstanceDocuments {
            ami_id: "ami-0123456789abcdef0".to_owned(),
            ami_launch_index: 0,
            instance_id: "i-0123456789abcdef0".to_owned(),
            instance_type: "kiln.1x512".to_owned(),
            local_hostname: "ip-10-0-2-15".to_owned(),
            local_ipv4: Some([10, 0, 2, 15].into()),
            public_ipv4: None,
            security_groups: Vec::new(),
            prefix: 24,
            mac: [2, 0, 0, 0, 0, 0xa],
            public_keys: vec![PublicKey {
                name: "mine".to_owned(),
                key: "ssh-ed25519 AAAA me".to_owned(),
            }],
            block_device_mapping: vec![("root".to_owned(), "/dev/vda".to_owned())],
            reservation_id: "r-0123456789abcdef0".to_owned(),
            launched: 1_796_040_000,
            architecture: "x86_64".to_owned(),
            tags: [("Name".to_owned(), "web".to_owned())].into(),
            user_data: None,
        }
    }

    /// The tree that requests walk.
    pub fn into_tree(self) -> Tree {
        let mut tree = Builder(Tree::new());
        self.instance(&mut tree);
        self.placement(&mut tree);
        self.interface(&mut tree);
        self.public_keys(&mut tree);
        put_tags(&mut tree, &self.tags);
        for (name, device) in &self.block_device_mapping {
            tree.meta(&format!("block-device-mapping/{name}"), device.as_str());
        }
        tree.put("dynamic/instance-identity/document", self.identity());
        tree.put("dynamic/fws/instance-monitoring", "disabled");
        if let Some(data) = self.user_data {
            tree.put("user-data", data);
        }
        tree.0
    }

    fn instance(&self, tree: &mut Builder) {
        for (path, value) in [
            ("ami-id", self.ami_id.as_str()),
            ("ami-launch-index", &self.ami_launch_index.to_string()),
            // EC2's answer for images that are not bundles in S3.
            ("ami-manifest-path", "(unknown)"),
            ("events/maintenance/history", "[]"),
            ("events/maintenance/scheduled", "[]"),
            ("hibernation/configured", "false"),
            ("hostname", &self.local_hostname),
            ("instance-action", "none"),
            ("instance-id", &self.instance_id),
            ("instance-life-cycle", "on-demand"),
            ("instance-type", &self.instance_type),
            ("local-hostname", &self.local_hostname),
            ("reservation-id", &self.reservation_id),
            ("security-groups", &self.group_names()),
        ] {
            tree.meta(path, value);
        }
    }

    fn placement(&self, tree: &mut Builder) {
        for (path, value) in [
            ("placement/availability-zone", ZONE),
            ("placement/availability-zone-id", ZONE_ID),
            ("placement/region", REGION),
            ("services/domain", DOMAIN),
            ("services/partition", PARTITION),
        ] {
            tree.meta(path, value);
        }
    }

    fn interface(&self, tree: &mut Builder) {
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        tree.meta("mac", mac.as_str());
        let mut put = |name: &str, value: &str| {
            tree.meta(&format!("network/interfaces/macs/{mac}/{name}"), value);
        };
        put("device-number", "0");
        put("interface-id", &self.interface_id());
        put("local-hostname", &self.local_hostname);
        put("mac", &mac);
        put("network-card", "0");
        put("owner-id", ACCOUNT);
        put("security-group-ids", &self.group_ids());
        put("security-groups", &self.group_names());
        if let (Some(public), Some(local)) = (self.public_ipv4, self.local_ipv4) {
            put("public-ipv4s", &public.to_string());
            put(&format!("ipv4-associations/{public}"), &local.to_string());
        }
        if let Some(address) = self.local_ipv4 {
            let block = block(address, self.prefix);
            put("local-ipv4s", &address.to_string());
            // What a tap device leads to is not known here.
            put("subnet-id", SUBNET);
            put("subnet-ipv4-cidr-block", &block);
            put("vpc-id", VPC);
            put("vpc-ipv4-cidr-block", &block);
            put("vpc-ipv4-cidr-blocks", &block);
            tree.meta("local-ipv4", address.to_string());
            if let Some(public) = self.public_ipv4 {
                tree.meta("public-ipv4", public.to_string());
            }
        }
    }

    /// Ids and names of its security groups.
    pub fn groups(&self) -> Vec<(&str, &str)> {
        match self.security_groups.as_slice() {
            [] => vec![(SECURITY_GROUP_ID, SECURITY_GROUP)],
            groups => groups
                .iter()
                .map(|(id, name)| (id.as_str(), name.as_str()))
                .collect(),
        }
    }

    fn group_names(&self) -> String {
        let names: Vec<_> = self.groups().into_iter().map(|(_, name)| name).collect();
        names.join("\n")
    }

    fn group_ids(&self) -> String {
        let ids: Vec<_> = self.groups().into_iter().map(|(id, _)| id).collect();
        ids.join("\n")
    }

    /// The id of its network interface: it follows from the instance's.
    pub fn interface_id(&self) -> String {
        const DIGITS: usize = 17;
        let digest = blake3::hash(format!("eni of {}", self.instance_id).as_bytes()).to_hex();
        format!("eni-{}", &digest[..DIGITS])
    }

    fn public_keys(&self, tree: &mut Builder) {
        if self.public_keys.is_empty() {
            return;
        }
        let mut listing = Vec::new();
        for (index, PublicKey { name, key }) in self.public_keys.iter().enumerate() {
            listing.push(format!("{index}={name}"));
            tree.meta(
                &format!("public-keys/{index}/openssh-key"),
                format!("{}\n", key.trim_end()),
            );
        }
        tree.meta("public-keys/", listing.join("\n"));
    }

    fn identity(&self) -> String {
        let document = serde_json::json!({
            "accountId": ACCOUNT,
            "architecture": self.architecture,
            "availabilityZone": ZONE,
            "billingProducts": null,
            "devpayProductCodes": null,
            "imageId": self.ami_id,
            "instanceId": self.instance_id,
            "instanceType": self.instance_type,
            "kernelId": null,
            "marketplaceProductCodes": null,
            "pendingTime": timestamp(self.launched),
            "privateIp": self.local_ipv4,
            "ramdiskId": null,
            "region": REGION,
            "version": IDENTITY_VERSION,
        });
        format!("{document:#}")
    }
}

/// Puts other tags into the tree.
pub(super) fn replace_tags(tree: &mut Tree, tags: &BTreeMap<String, String>) {
    tree.retain(|path, _| !path.starts_with(TAGS));
    let mut builder = Builder(std::mem::take(tree));
    put_tags(&mut builder, tags);
    *tree = builder.0;
}

fn put_tags(tree: &mut Builder, tags: &BTreeMap<String, String>) {
    let tags = tags.iter().filter(|(key, _)| may_be_a_path(key));
    let keys: Vec<_> = tags.clone().map(|(key, _)| key.as_str()).collect();
    tree.put(TAGS, keys.join("\n"));
    for (key, value) in tags {
        tree.put(&format!("{TAGS}{key}"), value.as_str());
    }
}

/// Whether a tag's key can be a name in a listing. EC2 refuses other keys where tags are allowed in metadata;
/// here they are left out.
fn may_be_a_path(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=._:,@".contains(c);
    !key.is_empty() && key.chars().all(allowed) && !matches!(key, "." | ".." | "_index")
}

/// The network of an address, as in `10.0.2.0/24`.
pub fn block(address: Ipv4Addr, prefix: u8) -> String {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    format!("{}/{prefix}", Ipv4Addr::from_bits(address.to_bits() & mask))
}

/// Seconds since 1970 as RFC 3339 has them, in UTC.
fn timestamp(seconds: u64) -> String {
    const DAY: u64 = 86_400;
    let (mut days, of_day) = (seconds / DAY, seconds % DAY);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (day, hour, minute, second) = (days + 1, of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// What is at `path` (no version, no slash at either end): a document, or the names in a folder, one a line,
/// folders with a slash.
pub fn look_up(tree: &Tree, path: &str) -> Option<Vec<u8>> {
    let folder = if path.is_empty() {
        String::new()
    } else {
        format!("{path}/")
    };
    let document = tree.get(path).or_else(|| tree.get(&folder));
    document.cloned().or_else(|| list(tree, &folder))
}

/// The names in `folder`, whose own name ends in a slash, if there are any.
fn list(tree: &Tree, folder: &str) -> Option<Vec<u8>> {
    let mut names: Vec<&str> = Vec::new();
    for below in tree.keys().filter_map(|key| key.strip_prefix(folder)) {
        let name = below.split_inclusive('/').next().unwrap_or_default();
        if names.last().is_none_or(|last| *last != name) {
            names.push(name);
        }
    }
    (!names.is_empty()).then(|| names.join("\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), expected);
        }
    }

    #[test]
    fn a_public_address_and_groups_are_there_for_who_has_them() {
        let mac = "meta-data/network/interfaces/macs/02:00:00:00:00:0a";
        let own = InstanceDocuments {
            public_ipv4: Some([127, 64, 0, 9].into()),
            security_groups: vec![("sg-1".into(), "web".into()), ("sg-2".into(), "ssh".into())],
            ..InstanceDocuments::example()
        };
        let (own, none) = (own.into_tree(), InstanceDocuments::example().into_tree());
        for (path, expected, default) in [
            ("meta-data/public-ipv4".to_owned(), "127.64.0.9", None),
            (format!("{mac}/public-ipv4s"), "127.64.0.9", None),
            (format!("{mac}/ipv4-associations/127.64.0.9"), "10.0.2.15", None),
            (
                "meta-data/security-groups".to_owned(),
                "web\nssh",
                Some(SECURITY_GROUP),
            ),
            (
                format!("{mac}/security-group-ids"),
                "sg-1\nsg-2",
                Some(SECURITY_GROUP_ID),
            ),
        ] {
            let text = |tree| look_up(tree, &path).map(|bytes| String::from_utf8(bytes).unwrap());
            assert_eq!(text(&own).as_deref(), Some(expected), "{path}");
            assert_eq!(text(&none).as_deref(), default, "{path}");
        }
    }

    #[test]
    fn keys_that_are_no_names_are_left_out() {
        for key in ["Name", "a+b-c=d.e_f:g,h@i"] {
            assert!(may_be_a_path(key), "{key}");
        }
        for key in ["", ".", "..", "_index", "a/b", "a b", "a\nb", "é"] {
            assert!(!may_be_a_path(key), "{key}");
        }
    }
}
