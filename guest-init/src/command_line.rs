//! The kernel command line's `root=` and `kiln.*` parameters, by which the machine distinguishes one instance
//! from another.

use std::net::Ipv4Addr;
use std::time::Duration;

/// What the machine said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// `console=`, the last one: device name without `/dev/` and without options.
    pub console: Option<String>,
    /// `root=/dev/…`: the root disk instead of the image's. Other forms (`UUID=…`) need a search that nothing
    /// here does.
    pub root: Option<String>,
    /// `rootwait=SECONDS`: how long to wait for the root disk.
    pub root_wait: Option<Duration>,
    /// `kiln.scrub=1`: remove what belongs to one instance from the root file system, and power off.
    pub scrub: bool,
    /// `kiln.boot_timer=0x…`: guest-physical address of the boot timer's doorbell.
    pub boot_timer: Option<u64>,
    /// `kiln.instance=i-…`: which instance this is.
    pub instance: Option<String>,
    /// `kiln.hostname=`: its name.
    pub hostname: Option<String>,
    /// `kiln.init=`: PID 1 instead of the image's.
    pub init: Option<String>,
    /// `kiln.stop=init`: power off where PID 1 of the image would be started, for measuring.
    pub stop_at_init: bool,
    /// `kiln.ip=ADDRESS/PREFIX,GATEWAY,DNS,MTU`: the first network interface.
    pub network: Option<StaticNetwork>,
    /// `kiln.search=DOMAIN,…`: the resolver's search list.
    pub search: Vec<String>,
    /// `kiln.main=none`: the host runs a command in place of the image's main program.
    pub without_main: bool,
}

/// Addresses of the first network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticNetwork {
    /// The interface's address.
    pub address: Ipv4Addr,
    /// Length of its prefix, 0 to 32.
    pub prefix: u8,
    /// The default route.
    pub gateway: Ipv4Addr,
    /// The resolver.
    pub dns: Ipv4Addr,
    /// The interface's MTU.
    pub mtu: u16,
}

impl CommandLine {
    /// Reads `/proc/cmdline`'s text. What is malformed is as good as absent: the machine then boots with the
    /// image's own settings. Words after `--` are arguments of init, not parameters (kernel-parameters.rst).
    pub fn parse(text: &str) -> CommandLine {
        let mut line = CommandLine::default();
        for (key, value) in text
            .split_ascii_whitespace()
            .take_while(|word| *word != "--")
            .filter_map(|word| word.split_once('='))
        {
            let owned = || Some(value.to_owned()).filter(|value| !value.is_empty());
            match key {
                "console" => line.console = value.split(',').next().map(str::to_owned),
                "root" => line.root = owned().filter(|device| device.starts_with("/dev/")),
                "rootwait" => line.root_wait = value.parse().ok().map(Duration::from_secs),
                "kiln.scrub" => line.scrub = value == "1",
                "kiln.boot_timer" => line.boot_timer = value.strip_prefix("0x").and_then(hex),
                "kiln.instance" => line.instance = owned(),
                "kiln.hostname" => line.hostname = owned(),
                "kiln.init" => line.init = owned(),
                "kiln.stop" => line.stop_at_init = value == "init",
                "kiln.ip" => line.network = StaticNetwork::parse(value),
                "kiln.search" => line.search = domains(value),
                "kiln.main" => line.without_main = value == "none",
                _ => {}
            }
        }
        line
    }
}

fn domains(value: &str) -> Vec<String> {
    value
        .split(',')
        .filter(|domain| !domain.is_empty())
        .map(str::to_owned)
        .collect()
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

impl StaticNetwork {
    fn parse(value: &str) -> Option<StaticNetwork> {
        let mut fields = value.split(',');
        let (address, prefix) = fields.next()?.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|&prefix| prefix <= 32)?;
        let mut next = || fields.next()?.parse().ok();
        let (gateway, dns) = (next()?, next()?);
        let mtu = fields.next().map_or(Some(1500), |mtu| mtu.parse().ok())?;
        Some(StaticNetwork {
            address: address.parse().ok()?,
            prefix,
            gateway,
            dns,
            mtu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read() {
        let line = CommandLine::parse(
            "console=ttyS0,115200 quiet console=hvc0 kiln.boot_timer=0xc0000000 kiln.instance=i-1 \
             kiln.hostname=web kiln.ip=10.0.2.15/24,10.0.2.2,10.0.2.3,65520 root=/dev/vdb rootwait=2 kiln.scrub=1 \
             kiln.stop=init kiln.search=a.example,,b.example kiln.main=none -- kiln.hostname=argument root=/dev/vdz\n",
        );
        assert_eq!(line.search, ["a.example", "b.example"]);
        assert!(line.without_main);
        assert_eq!(line.console.as_deref(), Some("hvc0"));
        assert_eq!(line.boot_timer, Some(0xc000_0000));
        assert_eq!((line.root.as_deref(), line.scrub), (Some("/dev/vdb"), true));
        assert_eq!(line.root_wait, Some(Duration::from_secs(2)));
        assert_eq!(line.instance.as_deref(), Some("i-1"));
        assert_eq!(line.hostname.as_deref(), Some("web"));
        assert!(line.stop_at_init);
        let network = line.network.unwrap();
        assert_eq!((network.prefix, network.mtu), (24, 65520));
        assert_eq!(network.dns, Ipv4Addr::new(10, 0, 2, 3));
    }

    #[test]
    fn malformed_parameters_are_ignored() {
        let line = CommandLine::parse(
            "kiln.boot_timer=c0 kiln.ip=10.0.2.15/33,1,2 kiln.instance= kiln.ip=x root=UUID=1 \
             kiln.scrub=yes kiln.stop=x quiet rootwait rootwait=-1 =",
        );
        assert_eq!(line, CommandLine::default());
    }
}
