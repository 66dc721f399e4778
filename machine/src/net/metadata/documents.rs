//! The documents of an instance: a tree of paths, built once at launch.
//!
//! The categories are those that EC2 documents. A category is served when Kiln has a value for it; for an
//! instance without it (an IAM role, a public address, a spot request) EC2 answers 404 as well.
//! Kiln has no region and zone, account, partition and security group. Their values are constants, in the
//! form that the tools which parse them expect.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The region. It is in no partition of AWS, so nothing can take it for a place there.
const REGION: &str = "local-1";
/// The zone: the region and one letter. botocore and cloud-init cut that off to get the region. It is not of
/// the form `cc-direction-1a`, for which cloud-init would look for package mirrors inside EC2.
const ZONE: &str = "local-1a";
/// The zone's name that is the same in all accounts: in EC2, `use1-az1` is one of `us-east-1`.
const ZONE_ID: &str = "local1-az1";
/// Twelve digits.
const ACCOUNT: &str = "000000000000";
/// What Amazon resource names begin with (`arn:aws:`).
const PARTITION: &str = "aws";
/// The domain of that partition's services.
const DOMAIN: &str = "amazonaws.com";
/// What a launch without one gets in EC2.
const SECURITY_GROUP: &str = "default";
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
        self.tags(&mut tree);
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
            ("security-groups", SECURITY_GROUP),
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
        put("interface-id", &self.resource("eni"));
        put("local-hostname", &self.local_hostname);
        put("mac", &mac);
        put("network-card", "0");
        put("owner-id", ACCOUNT);
        put("security-group-ids", &self.resource("sg"));
        put("security-groups", SECURITY_GROUP);
        if let Some(address) = self.local_ipv4 {
            let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
            let network = Ipv4Addr::from_bits(address.to_bits() & mask);
            let block = format!("{network}/{}", self.prefix);
            put("local-ipv4s", &address.to_string());
            // The network is the instance's own: a subnet that fills its VPC. What a tap device leads to is
            // not known here.
            put("subnet-id", &self.resource("subnet"));
            put("subnet-ipv4-cidr-block", &block);
            put("vpc-id", &self.resource("vpc"));
            put("vpc-ipv4-cidr-block", &block);
            put("vpc-ipv4-cidr-blocks", &block);
            tree.meta("local-ipv4", address.to_string());
        }
    }

    /// The id of something that belongs to the instance alone: it follows from the instance's.
    fn resource(&self, kind: &str) -> String {
        const DIGITS: usize = 17;
        let digest = blake3::hash(format!("{kind} of {}", self.instance_id).as_bytes()).to_hex();
        format!("{kind}-{}", &digest[..DIGITS])
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

    fn tags(&self, tree: &mut Builder) {
        let tags = self.tags.iter().filter(|(key, _)| may_be_a_path(key));
        let keys: Vec<_> = tags.clone().map(|(key, _)| key.as_str()).collect();
        tree.meta("tags/instance/", keys.join("\n"));
        for (key, value) in tags {
            tree.meta(&format!("tags/instance/{key}"), value.as_str());
        }
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

/// Whether a tag's key can be a name in a listing. EC2 refuses other keys where tags are allowed in metadata;
/// here they are left out.
fn may_be_a_path(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-=._:,@".contains(c);
    !key.is_empty() && key.chars().all(allowed) && !matches!(key, "." | ".." | "_index")
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
    fn keys_that_are_no_names_are_left_out() {
        for key in ["Name", "a+b-c=d.e_f:g,h@i"] {
            assert!(may_be_a_path(key), "{key}");
        }
        for key in ["", ".", "..", "_index", "a/b", "a b", "a\nb", "é"] {
            assert!(!may_be_a_path(key), "{key}");
        }
    }
}
