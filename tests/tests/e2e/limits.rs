//! `--limit`: the rates of a guest, measured from the host.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;
use crate::instance::process_of;

pub const TESTS: &[(&str, Test)] = &[(
    "a_limited_guest_does_no_more_than_it_may",
    a_limited_guest_does_no_more,
)];

/// Bytes that the guest sends.
const SENT: u64 = 3 << 20;

fn a_limited_guest_does_no_more(host: &TestHost) -> Result<()> {
    for (limit, advice) in [
        ("disk=1", "64KiB/s"),
        ("cpu=1", "cannot be limited"),
        ("iops=1,iops=2", "twice"),
    ] {
        let refused = host.sh(&format!("vmm run hello.ami --rm --limit {limit} -- true"))?;
        ensure!(
            refused.status != 0 && refused.stderr.contains(advice),
            "{limit}: {refused:?}"
        );
    }
    let refused = host.sh("vmm run hello.ami --rm --icount --limit iops=100 -- true")?;
    ensure!(
        refused.status == 125 && refused.stderr.contains("leave one of them out"),
        "{refused:?}"
    );
    ok(
        host,
        "ulimit -Sn 256; vmm run hello.ami -d --name slow --net user,loopback --limit net=8Mbit/s --limit iops=100 \
         --volume 64M --wait agent",
    )?;
    let open_files = ok(
        host,
        &format!("grep '^Max open files' /proc/$({})/limits", process_of("slow")),
    )?;
    ensure!(open_files.contains(" 4096 "), "{open_files}");
    // 400 requests at 100 a second, of which 10 are free after a rest: dd reads the device past the page
    // cache.
    let start = Instant::now();
    ok(
        host,
        "vmm exec slow -- dd if=/dev/vdb of=/dev/null bs=4k count=400 iflag=direct",
    )?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(3800), "400 requests took {took:?}");
    let (bytes, took) = send(host)?;
    // 3 MiB at a million bytes a second, of which a tenth is free.
    ensure!(
        bytes == SENT && took > Duration::from_millis(2800),
        "{bytes} bytes were sent in {took:?}"
    );
    big_datagrams(host)?;
    let record = ok(host, "vmm inspect slow")?;
    ensure!(record.contains("\"iops\": 100"), "{record}");
    ok(host, "vmm terminate --time 0 slow").map(drop)
}

/// Bytes of a datagram's content: more than an Ethernet frame has, and than the MTU that the guest sets in
/// the end.
const BLOCK: usize = 8 << 10;
/// Bytes of the file that goes both ways: several blocks, and a rest.
const FILE: usize = 3 * BLOCK + 100;

/// The guest puts and gets a file by TFTP (RFC 1350, RFC 2348) in datagrams of 8 KiB: whole ones, and with an
/// MTU of 1500 in pieces.
fn big_datagrams(host: &TestHost) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("a port")?;
    let port = socket.local_addr()?.port();
    let server = std::thread::spawn(move || (0..2).try_for_each(|_| put_and_get(&socket)));
    let tftp = format!("busybox tftp -b {BLOCK} -l file -r file");
    let both = format!("{tftp} -p 10.0.2.2 {port} && rm file && {tftp} -g 10.0.2.2 {port} && cmp file sent");
    ok(
        host,
        &format!(
            "vmm exec slow -- sh -ec 'cd /root; head -c {FILE} /dev/urandom >sent; cp sent file; {both}; \
             ifconfig eth0 mtu 1500; {both}'"
        ),
    )?;
    match server.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Serves one request to put a file and one to get it. The guest asks again for what is lost.
fn put_and_get(socket: &UdpSocket) -> Result<()> {
    const WRITE: u8 = 2;
    const DATA: u8 = 3;
    const ACK: u8 = 4;
    let options = format!("\0\x06blksize\0{BLOCK}\0");
    let (mut datagram, mut file, mut blocks) = (vec![0; BLOCK + 4], Vec::new(), 0);
    loop {
        let (length, peer) = socket.recv_from(&mut datagram)?;
        let (kind, number) = (datagram[1], u16::from_be_bytes([datagram[2], datagram[3]]));
        match kind {
            // A request that comes again has not been answered yet.
            1 | WRITE => {
                blocks = 0;
                socket.send_to(options.as_bytes(), peer)?;
            }
            DATA => {
                if number == blocks + 1 {
                    file.extend_from_slice(&datagram[4..length]);
                    blocks = number;
                }
                socket.send_to(&[0, ACK, datagram[2], datagram[3]], peer)?;
            }
            ACK => {
                let start = usize::from(number) * BLOCK;
                if start > file.len() {
                    return Ok(());
                }
                let end = file.len().min(start + BLOCK);
                let next = (number + 1).to_be_bytes();
                socket.send_to(&[&[0, DATA][..], &next, &file[start..end]].concat(), peer)?;
            }
            other => anyhow::bail!("the guest sent TFTP's {other}"),
        }
    }
}

/// Lets the guest send to a port of this host; returns how much came, and how long it took from the first
/// byte to the last.
fn send(host: &TestHost) -> Result<(u64, Duration)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port")?;
    let port = listener.local_addr()?.port();
    let receiver = std::thread::spawn(move || -> std::io::Result<(u64, Duration)> {
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut total, mut start) = (vec![0; 64 << 10], 0, None);
        loop {
            let count = stream.read(&mut buffer)?;
            let start = *start.get_or_insert_with(Instant::now);
            if count == 0 {
                return Ok((total, start.elapsed()));
            }
            total += count as u64;
        }
    });
    ok(
        host,
        &format!("vmm exec slow -- sh -c 'head -c {SENT} /dev/zero | nc -w 60 10.0.2.2 {port}'"),
    )?;
    match receiver.join() {
        Ok(result) => result.context("receiving"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
