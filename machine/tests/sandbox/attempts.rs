//! The attempts of a confined thread, by name. An error is the kernel's answer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use machine::sandbox::{self, Kind};
use machine::virtio::scheduling;

/// Something that a thread may try.
pub type Attempt = fn(&Path) -> io::Result<()>;

/// By name.
pub const ATTEMPTS: &[(&str, Attempt)] = &[
    ("nothing", |_| Ok(())),
    ("wait", |_| wait()),
    ("allocate", |_| {
        let mut all = Vec::new();
        for size in [100, 100_000, 10_000_000] {
            all.push(vec![1u8; size]);
        }
        drop(std::hint::black_box(all));
        Ok(())
    }),
    ("start_thread", |_| {
        sandbox::spawn("child", Kind::Device, || ())?
            .join()
            .map_err(|_| io::Error::other("it panicked"))
    }),
    ("lock_and_sleep", |_| {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let _ = receiver.recv_timeout(std::time::Duration::from_millis(5));
        drop(sender);
        std::thread::sleep(std::time::Duration::from_millis(1));
        Ok(())
    }),
    ("work_in_batches", |_| scheduling::in_batches()),
    ("claim_the_processor", |_| {
        let parameters = libc::sched_param { sched_priority: 1 };
        // SAFETY: the parameters are read during the call only.
        check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) })
    }),
    ("open_own", |home| File::open(home.join("own/file")).map(drop)),
    ("open_foreign", |home| File::open(home.join("foreign")).map(drop)),
    ("open_passwd", |_| File::open("/etc/passwd").map(drop)),
    ("write_read_only", |home| {
        OpenOptions::new()
            .write(true)
            .open(home.join("read-only"))
            .map(drop)
    }),
    ("cut_read_only", |home| {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(home.join("read-only"))
            .map(drop)
    }),
    ("read_read_only", |home| {
        fs::read(home.join("read-only")).map(drop)
    }),
    ("make_own", |home| {
        fs::write(home.join("own/draft"), "x")?;
        fs::rename(home.join("own/draft"), home.join("own/new"))?;
        fs::remove_file(home.join("own/new"))
    }),
    ("make_foreign", |home| fs::write(home.join("stranger"), "x")),
    ("remove_foreign", |home| fs::remove_file(home.join("foreign"))),
    ("rename_own_out", |home| {
        fs::rename(home.join("own/file"), home.join("out"))
    }),
    ("link_read_only_in", |home| {
        fs::hard_link(home.join("read-only"), home.join("own/in"))
    }),
    ("remove_own_directory", |home| {
        fs::rename(home.join("own"), home.join("gone"))
    }),
    ("read_replaced", |home| {
        let name = home.join("etc/names");
        let is = |expected: &[u8]| match sandbox::read_file(&name)? == expected {
            true => Ok(()),
            false => Err(io::Error::other("it reads something else")),
        };
        is(b"content")?;
        for content in [&b"another"[..], b"a third"] {
            REPLACE
                .get()
                .expect("started in the beginning")
                .send(content.to_vec())
                .map_err(io::Error::other)?;
            // It is there when the next can be taken.
            REPLACE
                .get()
                .expect("started in the beginning")
                .send(content.to_vec())
                .map_err(io::Error::other)?;
            is(content)?;
        }
        Ok(())
    }),
    ("read_beside_replaced", |home| {
        sandbox::read_file(&home.join("etc/beside")).map(drop)
    }),
    ("list_foreign", |home| fs::read_dir(home).map(drop)),
    ("execute", |_| {
        // SAFETY: the strings end with a zero, the arrays with a null.
        unsafe {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            libc::execv(c"/bin/true".as_ptr(), arguments.as_ptr())
        };
        Err(io::Error::last_os_error())
    }),
    ("fork", |_| {
        // SAFETY: the child does nothing but end.
        match unsafe { libc::fork() } {
            // SAFETY: takes a number only.
            0 => unsafe { libc::_exit(0) },
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    ("executable_memory", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("writable_memory", |_| map(libc::PROT_READ | libc::PROT_WRITE)),
    ("make_executable", |_| {
        let mut page = vec![0u8; 8192];
        let at = page.as_mut_ptr().wrapping_add(page.as_ptr().align_offset(4096));
        // SAFETY: the page lies inside of the vector.
        check(unsafe { libc::mprotect(at.cast(), 4096, libc::PROT_READ | libc::PROT_EXEC) })
    }),
    ("ptrace", |_| {
        // SAFETY: takes numbers only.
        check(unsafe { libc::ptrace(libc::PTRACE_ATTACH, 1, 0, 0) } as i32)
    }),
    ("signal_another", |_| {
        // SAFETY: takes numbers only; signal 0 does nothing.
        check(unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) } as i32)
    }),
    ("signal_ourselves", |_| {
        // SAFETY: takes numbers only; signal 0 does nothing.
        check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), 0) } as i32)
    }),
    ("change_handler", |_| {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) };
        Ok(())
    }),
    ("type_into_terminal", |_| {
        // SAFETY: the kernel reads one byte.
        check(unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) })
    }),
    ("tcp", |_| TcpStream::connect(("127.0.0.1", 9)).map(drop)),
    ("tcp_listen", |_| TcpListener::bind(("127.0.0.1", 0)).map(drop)),
    ("udp", |_| UdpSocket::bind(("127.0.0.1", 0)).map(drop)),
    ("udp_to_the_host", |_| {
        let nowhere = UdpSocket::bind(("0.0.0.0", 0))?;
        nowhere.send_to(b"x", ("127.0.0.1", 9)).map(drop)
    }),
    ("raw_socket", |_| {
        // SAFETY: takes numbers only.
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) })
    }),
    ("netlink", |_| {
        // SAFETY: takes numbers only.
        check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) })
    }),
    ("unix_socket", |home| {
        UnixStream::connect(home.join("own/socket")).map(drop)
    }),
    ("unix_listen", |home| {
        UnixListener::bind(home.join("own/new-socket")).map(drop)
    }),
    ("disk", |_| {
        with_disk(|disk| disk.write_all_at(b"x", 0)?.then_sync(disk))
    }),
    ("kvm_ioctl", |_| {
        // SAFETY: KVM_CREATE_VM takes a number; on what is not KVM the kernel knows no such command.
        check(unsafe { libc::ioctl(0, 0xae01, 0) })
    }),
    ("run_ioctl", |_| {
        // SAFETY: KVM_RUN takes a number; on what is not KVM the kernel knows no such command.
        check(unsafe { libc::ioctl(0, 0xae80, 0) })
    }),
];

/// Says that it is confined, and waits for the end of its input.
fn wait() -> io::Result<()> {
    io::stderr().write_all(b"\nconfined\n")?;
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

trait ThenSync {
    fn then_sync(self, disk: &File) -> io::Result<()>;
}

impl ThenSync for () {
    fn then_sync(self, disk: &File) -> io::Result<()> {
        disk.sync_data()
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn map(protection: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping wherever the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A thread that is not confined takes what the file `etc/names` is to be replaced by.
pub static REPLACE: std::sync::OnceLock<SyncSender<Vec<u8>>> = std::sync::OnceLock::new();

/// Starts it.
pub fn start_replacing(home: &Path) {
    let (sender, contents) = std::sync::mpsc::sync_channel::<Vec<u8>>(0);
    let (name, new) = (home.join("etc/names"), home.join("etc/new"));
    std::thread::spawn(move || {
        for content in contents {
            fs::write(&new, content).unwrap();
            fs::rename(&new, &name).unwrap();
        }
    });
    REPLACE.set(sender).unwrap();
}

/// A file that was opened before the process was confined.
pub static DISK: std::sync::OnceLock<File> = std::sync::OnceLock::new();

fn with_disk(attempt: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    attempt(DISK.get().expect("opened in the beginning"))
}
