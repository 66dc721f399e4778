//! Options of a launch: machine, storage, network.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::failure::Advice;
use super::{options, value};
use instance::process::launch::{RootCopy, VolumeRequest};
use instance::store::keys::public_keys;
use instance::store::limits::Limits;
use instance::store::network::{Network, Port};
use instance::store::record::{Accel, Config, CpuModel};

/// What the machine is made of.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct Hardware {
    /// Virtual processors (default: what the image says)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: Option<u32>,
    /// RAM, as in 512M or 2G (default: what the image says)
    #[arg(short, long, value_name = "SIZE", value_parser = value::memory)]
    memory: Option<u64>,
    /// The accelerator
    #[arg(long, value_parser = options::accelerator(), default_value = "auto")]
    accel: Accel,
    /// Which processor the guest sees (default: this host's with KVM, x86-64-v3 in software)
    #[arg(long, value_parser = options::cpu_model(), value_name = "MODEL")]
    cpu: Option<CpuModel>,
    /// Return memory that the guest reports free to this host (balloon device)
    #[arg(long)]
    balloon: bool,
    /// Rate limits: bytes of each volume, requests to each volume, network traffic in each direction
    #[arg(long, value_name = "disk=RATE,iops=N,net=RATE")]
    limit: Vec<Limits>,
    /// Words to add to the kernel command line
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
    /// A kernel to boot instead of the image's: vmlinux, bzImage or (arm64) Image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initramfs to use instead of the image's
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
}

/// Volumes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Storage")]
pub struct Storage {
    /// Size of the root volume; the guest grows its file system to it
    #[arg(long, value_name = "SIZE", value_parser = value::size)]
    pub(super) root_size: Option<u64>,
    /// When to copy the image into the root volume
    #[arg(long, value_parser = options::root_copy(), default_value = "lazy")]
    pub(super) root_copy: RootCopy,
    /// Attach a new volume of this size, or a file as it is; `,keep` keeps the volume after the instance is
    /// terminated, `,ephemeral` empties it at each stop
    #[arg(long, value_name = "SIZE[,keep|,ephemeral]|FILE")]
    pub(super) volume: Vec<VolumeRequest>,
}

/// The network and what the guest is given over it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// Publish a port of the guest on 127.0.0.1, or on another address if asked; without HOST the host
    /// chooses
    #[arg(short, long, value_name = "[[IP:]HOST:]GUEST[/udp]")]
    publish: Vec<Port>,
    /// The network: built-in, a tap device, or none; with `user,loopback` the guest reaches this host's
    /// 127.0.0.1 at 10.0.2.2
    #[arg(long, value_name = "user[,loopback]|tap=DEVICE|none", default_value = "user")]
    net: Network,
    /// A file with authorized public keys
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// User data for the first boot: a script, or any format that cloud-init supports
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

impl NetworkArgs {
    pub(super) fn config(&self, config: Config) -> anyhow::Result<Config> {
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_key {
            let text = read(path)?;
            let message = match public_keys(&text) {
                Ok(keys) if !keys.is_empty() => {
                    ssh_keys.extend(keys);
                    continue;
                }
                Ok(_) => format!("{} holds no public key", path.display()),
                Err(line) => format!("{} holds no public key in line {line}", path.display()),
            };
            return Err(Advice::new(message, "give the file that ends in .pub").into());
        }
        Ok(Config {
            network: self.net.clone(),
            ports: self.publish.clone(),
            ssh_keys,
            ..config
        })
    }

    pub(super) fn user_data(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        self.user_data.as_ref().map(read).transpose()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Hardware {
    /// The kernel that replaces the image's.
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    pub(super) fn config(&self) -> anyhow::Result<Config> {
        let absolute = |path: &Option<PathBuf>| {
            path.as_ref()
                .map(|p| {
                    p.canonicalize()
                        .with_context(|| format!("cannot use {}", p.display()))
                })
                .transpose()
        };
        let mut limits = Limits::default();
        for limit in &self.limit {
            limits = limits
                .and(*limit)
                .map_err(|name| Advice::new(format!("{name} is limited twice"), "give each limit once"))?;
        }
        Ok(Config {
            limits,
            balloon: self.balloon,
            cpus: self.cpus,
            memory: self.memory,
            accel: self.accel,
            cpu: self.cpu,
            append: self.append.clone(),
            kernel: absolute(&self.kernel)?,
            initrd: absolute(&self.initrd)?,
            ..Config::default()
        })
    }
}
