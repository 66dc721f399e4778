//! Debian's cloud-init in an image with systemd configures an instance as on EC2.
//!
//! Both DHCP clients of the test are Debian's: dhcpcd, which cloud-init starts to reach the metadata service
//! before there is a network, and systemd-networkd after it.

use std::time::Duration;

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;

/// cloud-init takes two minutes a boot on a processor in software.
pub const LONG: &[(&str, Test)] = &[(
    "stock_cloud_init_configures_an_instance_and_one_of_its_image",
    stock_cloud_init,
)];

const LIMIT: Duration = Duration::from_secs(1200);

/// A public key without a private key.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBqZ2yUu4pD2gk4jQbqz5v8m0yQKxQ4n0B1kq1rj8w3X test";

/// A user with a key, a file, and a command that leaves a line each time it runs. `@` stands for what
/// differs.
const USER_DATA: &str = "#cloud-config
users:
  - default
  - name: @
    gecos: Ada Lovelace
    groups: [sudo]
    shell: /bin/bash
    sudo: \"ALL=(ALL) NOPASSWD:ALL\"
    ssh_authorized_keys: [\"KEY\"]
write_files:
  - path: /etc/motd
    content: |
      For @, by cloud-init.
runcmd:
  - [sh, -c, \"echo @ >> /var/lib/ran\"]
";

fn stock_cloud_init(host: &TestHost) -> Result<()> {
    let result = check(host);
    host.sh(
        "for i in $(vmm ps -aq --tag test=cloud); do vmm terminate --time 0 $i; done; vmm image rm captured; \
         rm -f $HOME/cloud-key $HOME/cloud-key.pub",
    )?;
    result
}

fn check(host: &TestHost) -> Result<()> {
    make_key(host)?;
    launch(host, "cloud.ami", "clouded", "ada")?;
    is_configured(host, "clouded", "ada")?;
    has_its_address_by_dhcp(host, "clouded")?;
    logs_in(host, "clouded", "ada")?;

    // The same instance once more: what is done once per instance is not done again.
    let boot = boot_of(host, "clouded")?;
    ok(host, "vmm reboot clouded")?;
    is_configured(host, "clouded", "ada")?;
    ensure!(boot_of(host, "clouded")? != boot, "it was not rebooted");

    // An instance of its image is another one: it is configured by its own data, and keeps what the image
    // has.
    ok(
        host,
        "vmm stop --time 120 clouded && vmm create-image clouded captured && vmm terminate clouded",
    )?;
    launch(host, "captured", "second", "grace")?;
    ok(host, "vmm exec second -- cloud-init status --wait")?;
    let ran = ok(
        host,
        "vmm exec second -- sh -c 'cat /var/lib/ran; id -nu ada; id -nu grace; cat /etc/motd'",
    )?;
    ensure!(
        ran == "ada\ngrace\nada\ngrace\nFor grace, by cloud-init.\n",
        "{ran:?}"
    );
    has_its_address_by_dhcp(host, "second")
}

/// A key of this test's own where there is OpenSSH to use it; the lab has none, and gets one that cannot be
/// used.
fn make_key(host: &TestHost) -> Result<()> {
    let line = match host {
        TestHost::Here { .. } => {
            "rm -f $HOME/cloud-key*; ssh-keygen -q -t ed25519 -N '' -C test -f $HOME/cloud-key".to_owned()
        }
        TestHost::Lab { .. } => format!("echo '{KEY}' > $HOME/cloud-key.pub"),
    };
    ok(host, &line).map(drop)
}

fn launch(host: &TestHost, image: &str, name: &str, user: &str) -> Result<()> {
    let data = USER_DATA.replace('@', user);
    ok(
        host,
        &format!(
            "cat > $HOME/user-data <<'END'\n{data}END\n\
             sed -i \"s|KEY|$(cat $HOME/cloud-key.pub)|\" $HOME/user-data\n\
             vmm run {image} -d --name {name} --tag test=cloud -p 22 --ssh-key $HOME/cloud-key.pub \
             --user-data $HOME/user-data --wait agent --wait-timeout 300"
        ),
    )
    .map(drop)
}

/// cloud-init has ended without an error, has taken the instance for what it is, and has done each thing
/// once.
fn is_configured(host: &TestHost, name: &str, user: &str) -> Result<()> {
    let line = format!("vmm exec --wait-timeout 300 {name} -- cloud-init status --wait --format json");
    let status = host.sh_within(&line, LIMIT)?;
    let printed: serde_json::Value =
        serde_json::from_str(status.stdout.trim_start_matches('.')).unwrap_or_default();
    ensure!(
        status.status == 0
            && printed["extended_status"] == "done"
            && printed["detail"] == "DataSourceEc2Local"
            && printed["errors"] == serde_json::json!([]),
        "{status:?}"
    );
    let id = ok(host, "vmm ps -q --tag test=cloud")?;
    let printed = ok(
        host,
        &format!(
            "vmm exec {name} -- sh -c 'cloud-id; cloud-init query v1.instance_id; hostname; cat /var/lib/ran /etc/motd; \
             su {user} -c \"sudo -n id -u\"; systemctl is-system-running --wait'"
        ),
    )?;
    let expected = format!(
        "aws\n{}\n{name}\n{user}\nFor {user}, by cloud-init.\n0\nrunning\n",
        id.trim()
    );
    ensure!(printed == expected, "{printed:?} instead of {expected:?}");
    for user in [user, "debian"] {
        ok(
            host,
            &format!(
                "test \"$(vmm exec {name} -- cat /home/{user}/.ssh/authorized_keys)\" = \"$(cat $HOME/cloud-key.pub)\""
            ),
        )?;
    }
    Ok(())
}

/// systemd-networkd has the lease, and so had dhcpcd.
fn has_its_address_by_dhcp(host: &TestHost, name: &str) -> Result<()> {
    let printed = ok(
        host,
        &format!(
            "vmm exec {name} -- sh -c 'cat /run/systemd/netif/leases/*; journalctl -b -t dhcpcd; ip -4 -o address show dynamic; \
             ip route show default'"
        ),
    )?;
    for word in [
        "ADDRESS=10.0.2.15\n",
        "ROUTER=10.0.2.2\n",
        "DNS=10.0.2.3\n",
        "leased 10.0.2.15 for 86400 seconds",
        "inet 10.0.2.15/24 ",
        "default via 10.0.2.2 ",
    ] {
        ensure!(printed.contains(word), "{word:?} is missing in {printed}");
    }
    Ok(())
}

/// A person logs in with the key, through the published port.
fn logs_in(host: &TestHost, name: &str, user: &str) -> Result<()> {
    if matches!(host, TestHost::Here { .. }) {
        let printed = ok(
            host,
            &format!("vmm ssh -i $HOME/cloud-key {user}@{name} 'id -un; sudo -n id -un'"),
        )?;
        ensure!(printed == format!("{user}\nroot\n"), "{printed:?}");
    }
    Ok(())
}

fn boot_of(host: &TestHost, name: &str) -> Result<String> {
    ok(
        host,
        &format!("vmm exec {name} -- cat /proc/sys/kernel/random/boot_id"),
    )
}
