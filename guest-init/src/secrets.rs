//! Keys, certificates and database clusters that the scripts of Debian's packages create when they are
//! configured, and that no two machines may share. An image does not have them; each instance creates its own
//! at its first boot.
//!
//! `imgtool` uses this table to remove them from a build, the agent to create them, and `create-image` to
//! remove them from a copy. SSH host keys and machine-id are not in it: every image has those.

/// The list of what the next boot has to make, below the root: paths as [`Secret::paths`] gives them first,
/// one a line.
pub const PENDING: &str = "var/lib/kiln/first-boot";

/// What a package makes.
#[derive(Debug)]
pub struct Secret {
    /// The package.
    pub package: &'static str,
    /// What it makes, below the root: files, or folders whose content it makes. A `*` stands for one name,
    /// the same in each.
    pub paths: &'static [&'static str],
    /// Names that stay in a folder begin so.
    pub keeps: Option<&'static str>,
    /// A folder, and the target of symbolic links in it that are made as well.
    pub links: Option<(&'static str, &'static str)>,
    /// Whether nobody puts anything of their own in its place: renewed for every instance, and removed by
    /// `create-image`. What is not is removed from an image while it is as the package made it, and never
    /// from an instance.
    pub throwaway: bool,
    /// Room that it takes in the root file system, in bytes, where that is more than any root has to spare.
    pub room: u64,
    /// The program that makes it, below the root. Without it there is nothing to renew.
    pub program: &'static str,
    /// The commands for `/bin/sh -eu`, with what `*` stands for as `$1`. They may run again after an
    /// interruption.
    pub make: &'static str,
}

/// The table.
pub const TABLE: &[Secret] = &[
    Secret {
        package: "ssl-cert",
        paths: &[
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
        ],
        keeps: None,
        links: Some(("etc/ssl/certs", "ssl-cert-snakeoil.pem")),
        throwaway: true,
        room: 0,
        program: "usr/sbin/make-ssl-cert",
        make: "make-ssl-cert generate-default-snakeoil --force-overwrite",
    },
    Secret {
        package: "dropbear",
        paths: &[
            "etc/dropbear/dropbear_ed25519_host_key",
            "etc/dropbear/dropbear_ecdsa_host_key",
            "etc/dropbear/dropbear_rsa_host_key",
        ],
        keeps: None,
        links: None,
        throwaway: true,
        room: 0,
        program: "usr/bin/dropbearkey",
        make: "for kind in ed25519 ecdsa rsa; do \
               key=/etc/dropbear/dropbear_${kind}_host_key; rm -f $key; dropbearkey -t $kind -f $key; done",
    },
    Secret {
        package: "xrdp",
        paths: &["etc/xrdp/rsakeys.ini"],
        keeps: None,
        links: None,
        throwaway: true,
        room: 0,
        program: "usr/bin/xrdp-keygen",
        make: "umask 077; xrdp-keygen xrdp auto; chown xrdp /etc/xrdp/rsakeys.ini",
    },
    Secret {
        package: "nsd",
        paths: &[
            "etc/nsd/nsd_server.key",
            "etc/nsd/nsd_server.pem",
            "etc/nsd/nsd_control.key",
            "etc/nsd/nsd_control.pem",
        ],
        keeps: None,
        links: None,
        throwaway: true,
        room: 0,
        program: "usr/sbin/nsd-control-setup",
        make: "nsd-control-setup",
    },
    Secret {
        package: "nvme-cli",
        paths: &["etc/nvme/hostnqn", "etc/nvme/hostid"],
        keeps: None,
        links: None,
        throwaway: true,
        room: 0,
        program: "usr/sbin/nvme",
        make: "nvme gen-hostnqn > /etc/nvme/hostnqn; cat /proc/sys/kernel/random/uuid > /etc/nvme/hostid",
    },
    Secret {
        package: "popularity-contest",
        paths: &["etc/popularity-contest.conf", "etc/cron.d/popularity-contest"],
        keeps: None,
        links: None,
        throwaway: true,
        room: 0,
        program: "var/lib/dpkg/info/popularity-contest.postinst",
        make: "/var/lib/dpkg/info/popularity-contest.postinst configure",
    },
    // Keys that people also share between machines on purpose.
    Secret {
        package: "bind9",
        paths: &["etc/bind/rndc.key"],
        keeps: None,
        links: None,
        throwaway: false,
        room: 0,
        program: "usr/sbin/rndc-confgen",
        make: "rndc-confgen -a; chown bind:bind /etc/bind/rndc.key; chmod 640 /etc/bind/rndc.key",
    },
    Secret {
        package: "munge",
        paths: &["etc/munge/munge.key"],
        keeps: None,
        links: None,
        throwaway: false,
        room: 0,
        program: "usr/sbin/mungekey",
        make: "mungekey --create --force; chown munge:munge /etc/munge/munge.key; \
               chmod 400 /etc/munge/munge.key",
    },
    // Databases hold what users put there. The configuration in /etc/postgresql is the package's own and
    // stays.
    Secret {
        package: "postgresql",
        paths: &["var/lib/postgresql/*/main"],
        keeps: None,
        links: None,
        throwaway: false,
        room: 128 << 20,
        program: "usr/lib/postgresql/*/bin/initdb",
        make: "data=/var/lib/postgresql/$1/main; rm -rf $data.new; \
               mountpoint -q /dev/shm || { mkdir -p /dev/shm; mount -t tmpfs -o mode=1777 tmpfs /dev/shm; }; \
               runuser -u postgres -- /usr/lib/postgresql/$1/bin/initdb -D $data.new \
               --auth-local peer --auth-host scram-sha-256; \
               rm $data.new/postgresql.conf $data.new/pg_hba.conf $data.new/pg_ident.conf; \
               mv -T $data.new $data",
    },
    Secret {
        package: "mariadb-server",
        paths: &["var/lib/mysql"],
        keeps: Some("debian-"),
        links: None,
        throwaway: false,
        room: 256 << 20,
        program: "usr/bin/mariadb-install-db",
        make: "mariadb-install-db --rpm --cross-bootstrap --user=mysql --disable-log-bin --skip-test-db",
    },
    // The administrator's password, and the directory's ids. The package's own script makes both, with the
    // domain that debconf has; it would start the service, too, and keeps a copy of the empty folder.
    Secret {
        package: "slapd",
        paths: &["etc/ldap/slapd.d", "var/lib/ldap"],
        keeps: None,
        links: None,
        throwaway: false,
        room: 0,
        program: "usr/sbin/slapd",
        make: "rm -rf /etc/ldap/slapd.d/* /var/lib/ldap/*; bin=$(mktemp -d); ln -s /bin/true $bin/invoke-rc.d; \
               PATH=$bin:$PATH dpkg-reconfigure slapd; rm -r $bin; \
               rmdir /var/backups/slapd-*/slapd.d /var/backups/slapd-* || true",
    },
];

impl Secret {
    /// Its entry of [`PENDING`] for what `*` stands for.
    pub fn entry(&self, star: &str) -> String {
        self.paths[0].replace('*', star)
    }

    /// The entry of the table for a line of [`PENDING`], and what `*` stands for in it.
    pub fn of_entry(line: &str) -> Option<(&'static Secret, &str)> {
        TABLE
            .iter()
            .find_map(|secret| Some((secret, secret.star_of(line)?)))
    }

    fn star_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some((head, tail)) = self.paths[0].split_once('*') else {
            return (path == self.paths[0]).then_some("");
        };
        let star = path.strip_prefix(head)?.strip_suffix(tail)?;
        is_star(star).then_some(star)
    }

    /// The folder whose names `*` may stand for.
    pub fn star_folder(&self) -> Option<&'static str> {
        let (head, _) = self.paths[0].split_once('*')?;
        Some(head.trim_end_matches('/'))
    }
}

/// What `*` may stand for: a version. It becomes a word of a command.
pub fn is_star(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.') && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_by_its_line_and_no_other() {
        for secret in TABLE {
            let star = if secret.star_folder().is_some() { "17" } else { "" };
            let entry = secret.entry(star);
            let (found, text) = Secret::of_entry(&entry).unwrap();
            assert_eq!((found.package, text), (secret.package, star));
            let sound = |path: &&str| !path.starts_with('/') && !path.ends_with('/') && !path.contains("..");
            assert!(
                secret.paths.iter().chain([&secret.program]).all(sound),
                "{secret:?}"
            );
        }
        for line in [
            "",
            "etc/passwd",
            "var/lib/postgresql/../main",
            "var/lib/postgresql/1;x/main",
        ] {
            assert!(Secret::of_entry(line).is_none(), "{line}");
        }
    }
}
