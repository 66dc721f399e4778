//! Which system calls each kind of thread may make, and why.
//!
//! Numbers are `libc`'s, so each list reads the same on every architecture. Calls that only x86-64 has, and
//! that C libraries there still make, are [`LEGACY`].

use super::Kind;

/// One entry of a list.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// The call, whatever its arguments.
    Call(i64),
    /// The call when each of the arguments (by position) is right.
    When(i64, &'static [(u8, Is)]),
    /// The call when its first argument is this process's id.
    OnUs(i64),
    /// The call of this name, where the architecture has it: the number is x86-64's.
    Legacy(i64),
    /// The call fails with ENOSYS: programs try it before they use another one.
    Absent(i64),
}

/// What an argument must be; the lower 32 bits count, as they do to the kernel for all that is compared here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Is {
    /// Exactly this.
    Equal(u32),
    /// None of these bits.
    Without(u32),
    /// All of these bits.
    With(u32),
    /// These bits (first) have this value (second).
    Masked(u32, u32),
}

use Is::{Equal, Masked, With, Without};
use Rule::{Absent, Call, Legacy, OnUs, When};

const PROT_EXEC: u32 = libc::PROT_EXEC as u32;

/// What code of every kind does: memory, locks, time, what is open already, its own end.
const ALWAYS: &[Rule] = &[
    // Descriptors that are open: eventfds, epoll, files that were given.
    Call(libc::SYS_read),
    Call(libc::SYS_write),
    Call(libc::SYS_readv),
    Call(libc::SYS_pread64),
    Call(libc::SYS_writev),
    Call(libc::SYS_close),
    Call(libc::SYS_eventfd2),
    Call(libc::SYS_epoll_create1),
    Call(libc::SYS_epoll_ctl),
    Call(libc::SYS_epoll_pwait),
    Call(libc::SYS_ppoll),
    Legacy(7),   // poll
    Legacy(232), // epoll_wait
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_DUPFD_CLOEXEC as u32))]),
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_GETFD as u32))]),
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_SETFD as u32))]),
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_GETFL as u32))]),
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_SETFL as u32))]),
    // Memory: the heap, stacks, guest RAM. Nothing that is executed.
    Call(libc::SYS_brk),
    Call(libc::SYS_munmap),
    Call(libc::SYS_mremap),
    Call(libc::SYS_madvise),
    When(libc::SYS_mmap, &[(2, Without(PROT_EXEC))]),
    When(libc::SYS_mprotect, &[(2, Without(PROT_EXEC))]),
    // Locks, and waiting.
    Call(libc::SYS_futex),
    Call(libc::SYS_sched_yield),
    Call(libc::SYS_nanosleep),
    Call(libc::SYS_clock_nanosleep),
    Call(libc::SYS_restart_syscall),
    // A device's thread makes way for what runs; it cannot make others make way for it.
    When(
        libc::SYS_sched_setscheduler,
        &[(0, Equal(0)), (1, Equal(libc::SCHED_BATCH as u32))],
    ),
    // Where the kernel's page of code for it does not know the clock.
    Call(libc::SYS_clock_gettime),
    Call(libc::SYS_gettimeofday),
    // Keys of hash tables, identifiers, the guest's entropy.
    Call(libc::SYS_getrandom),
    // Signals to our own threads: a processor is kicked by one, `abort` is one.
    Call(libc::SYS_getpid),
    Call(libc::SYS_gettid),
    OnUs(libc::SYS_tgkill),
    Call(libc::SYS_rt_sigprocmask),
    Call(libc::SYS_rt_sigreturn),
    Call(libc::SYS_sigaltstack),
    // A thread's end, and the process's.
    Call(libc::SYS_set_robust_list),
    Call(libc::SYS_rseq),
    Call(libc::SYS_exit),
    Call(libc::SYS_exit_group),
];

/// What a processor of KVM does in its thread: run; connect a doorbell when the guest enables a queue; tell
/// the guest that it was held; read the registers for the report of an error or a snapshot.
const KVM: &[Rule] = &[
    When(libc::SYS_ioctl, &[(1, Equal(0xae80))]),      // KVM_RUN
    When(libc::SYS_ioctl, &[(1, Equal(0x4040_ae79))]), // KVM_IOEVENTFD
    When(libc::SYS_ioctl, &[(1, Equal(0xaead))]),      // KVM_KVMCLOCK_CTRL
    When(libc::SYS_ioctl, &[(1, Equal(0x8090_ae81))]), // KVM_GET_REGS
    When(libc::SYS_ioctl, &[(1, Equal(0x8138_ae83))]), // KVM_GET_SREGS
    When(libc::SYS_ioctl, &[(1, Equal(0x4010_aeab))]), // KVM_GET_ONE_REG
    When(libc::SYS_ioctl, &[(1, Equal(0xc008_aeb0))]), // KVM_GET_REG_LIST
    When(libc::SYS_ioctl, &[(1, Equal(0x8004_ae98))]), // KVM_GET_MP_STATE
    When(libc::SYS_ioctl, &[(1, Equal(0x9000_aea4))]), // KVM_GET_XSAVE
    When(libc::SYS_ioctl, &[(1, Equal(0x8188_aea6))]), // KVM_GET_XCRS
    When(libc::SYS_ioctl, &[(1, Equal(0x8080_aea1))]), // KVM_GET_DEBUGREGS
    When(libc::SYS_ioctl, &[(1, Equal(0x8400_ae8e))]), // KVM_GET_LAPIC
    When(libc::SYS_ioctl, &[(1, Equal(0xaea3))]),      // KVM_GET_TSC_KHZ
    When(libc::SYS_ioctl, &[(1, Equal(0xc008_ae88))]), // KVM_GET_MSRS
    When(libc::SYS_ioctl, &[(1, Equal(0x8040_ae9f))]), // KVM_GET_VCPU_EVENTS
];

/// What a snapshot reads of KVM's machine, in the thread that was asked for it.
const SNAPSHOT: &[Rule] = &[
    When(libc::SYS_ioctl, &[(1, Equal(0xc208_ae62))]), // KVM_GET_IRQCHIP
    When(libc::SYS_ioctl, &[(1, Equal(0x8030_ae7c))]), // KVM_GET_CLOCK
    When(libc::SYS_ioctl, &[(1, Equal(0x4018_aee2))]), // KVM_GET_DEVICE_ATTR
];

/// What a processor in software does to the processes in which its programs run. Only processes of the same
/// Landlock domain can be traced.
const DIRECT: &[Rule] = &[
    When(libc::SYS_ptrace, &[(0, Equal(6))]), // PTRACE_POKEUSER: breakpoints
    When(libc::SYS_ptrace, &[(0, Equal(12))]), // PTRACE_GETREGS
    When(libc::SYS_ptrace, &[(0, Equal(13))]), // PTRACE_SETREGS
    When(libc::SYS_ptrace, &[(0, Equal(15))]), // PTRACE_SETFPREGS
    When(libc::SYS_ptrace, &[(0, Equal(7))]), // PTRACE_CONT
    When(libc::SYS_ptrace, &[(0, Equal(31))]), // PTRACE_SYSEMU
    When(libc::SYS_ptrace, &[(0, Equal(0x4202))]), // PTRACE_GETSIGINFO
    When(libc::SYS_ptrace, &[(0, Equal(0x4204))]), // PTRACE_GETREGSET
    When(libc::SYS_ptrace, &[(0, Equal(0x4205))]), // PTRACE_SETREGSET
    When(libc::SYS_ptrace, &[(0, Equal(0x4206))]), // PTRACE_SEIZE
    When(libc::SYS_ptrace, &[(0, Equal(0x4207))]), // PTRACE_INTERRUPT
    When(libc::SYS_ptrace, &[(0, Equal(0x420f))]), // PTRACE_GET_RSEQ_CONFIGURATION
    Call(libc::SYS_wait4),
    // The guest's timer.
    Call(libc::SYS_timer_create),
    Call(libc::SYS_timer_settime),
    Call(libc::SYS_timer_delete),
    // They stay on the processor that this thread is on.
    Call(libc::SYS_getcpu),
    // Their end. There is no way to get a descriptor of another process.
    When(libc::SYS_pidfd_send_signal, &[(1, Equal(libc::SIGKILL as u32))]),
];

/// What a disk does with its open files.
const DISK: &[Rule] = &[
    Call(libc::SYS_pwrite64),
    Call(libc::SYS_preadv),
    Call(libc::SYS_pwritev),
    Call(libc::SYS_lseek),
    Call(libc::SYS_fsync),
    Call(libc::SYS_fdatasync),
    Call(libc::SYS_fallocate),
    // The tail is cut off when a volume stands alone.
    Call(libc::SYS_ftruncate),
    Call(libc::SYS_fstat),
];

/// What a disk does with its ring, if it has one (`--disk-engine io_uring`). Operations of a ring pass by
/// this list: the ring was made to take reads and writes of open files only, and none can be made in this
/// thread.
const RING: &[Rule] = &[Call(libc::SYS_io_uring_enter)];

/// Sockets that are open, whatever their family.
const SOCKETS: &[Rule] = &[
    Call(libc::SYS_connect),
    Call(libc::SYS_accept4),
    Call(libc::SYS_sendto),
    Call(libc::SYS_recvfrom),
    Call(libc::SYS_sendmsg),
    Call(libc::SYS_recvmsg),
    Call(libc::SYS_shutdown),
    Call(libc::SYS_getsockopt),
    Call(libc::SYS_setsockopt),
    Call(libc::SYS_getsockname),
    Call(libc::SYS_getpeername),
    When(libc::SYS_ioctl, &[(1, Equal(libc::FIONBIO as u32))]),
];

/// New sockets of the internet's families: streams and datagrams, nothing raw.
const INTERNET: &[Rule] = &[
    When(libc::SYS_socket, &[(0, Equal(libc::AF_INET as u32)), STREAM]),
    When(libc::SYS_socket, &[(0, Equal(libc::AF_INET as u32)), DATAGRAM]),
    When(libc::SYS_socket, &[(0, Equal(libc::AF_INET6 as u32)), STREAM]),
    When(libc::SYS_socket, &[(0, Equal(libc::AF_INET6 as u32)), DATAGRAM]),
    // A datagram socket of the guest's gets its port by it.
    Call(libc::SYS_bind),
    // A tap device's offloads, once the driver has chosen its features (TUNSETOFFLOAD).
    When(libc::SYS_ioctl, &[(1, Equal(0x4004_54d0))]),
];
const TYPE_MASK: u32 = 0xf;
const STREAM: (u8, Is) = (1, Masked(TYPE_MASK, libc::SOCK_STREAM as u32));
const DATAGRAM: (u8, Is) = (1, Masked(TYPE_MASK, libc::SOCK_DGRAM as u32));

/// New sockets inside this host.
const LOCAL: &[Rule] = &[
    When(libc::SYS_socket, &[(0, Equal(libc::AF_UNIX as u32))]),
    When(libc::SYS_socketpair, &[(0, Equal(libc::AF_UNIX as u32))]),
    // How much the other end has not read (SIOCOUTQ).
    When(libc::SYS_ioctl, &[(1, Equal(libc::TIOCOUTQ as u32))]),
];

/// The terminal: whether there is one, its size, raw mode. Not TIOCSTI, which types for its user.
const TERMINAL: &[Rule] = &[
    When(libc::SYS_ioctl, &[(1, Equal(libc::TCGETS as u32))]),
    When(libc::SYS_ioctl, &[(1, Equal(libc::TCSETS as u32))]),
    When(libc::SYS_ioctl, &[(1, Equal(libc::TCSETSW as u32))]),
    When(libc::SYS_ioctl, &[(1, Equal(0x802c_542a))]), // TCGETS2
    When(libc::SYS_ioctl, &[(1, Equal(0x402c_542b))]), // TCSETS2
    When(libc::SYS_ioctl, &[(1, Equal(0x402c_542c))]), // TCSETSW2
    When(libc::SYS_ioctl, &[(1, Equal(libc::TIOCGWINSZ as u32))]),
];

/// Files by name: which ones is Landlock's business.
const FILES: &[Rule] = &[
    Call(libc::SYS_openat),
    Call(libc::SYS_newfstatat),
    Call(libc::SYS_statx),
    Call(libc::SYS_readlinkat),
    Call(libc::SYS_faccessat),
    Call(libc::SYS_unlinkat),
    Call(libc::SYS_renameat),
    Call(libc::SYS_renameat2),
    Call(libc::SYS_getdents64),
    Call(libc::SYS_flock),
    Call(libc::SYS_fstatfs),
    Call(libc::SYS_getcwd),
    Legacy(2),  // open
    Legacy(4),  // stat
    Legacy(6),  // lstat
    Legacy(21), // access
    Legacy(82), // rename
    Legacy(87), // unlink
    Legacy(89), // readlink
];

/// What the process does that reads one file: opens it, and speaks over the socket that it was given. It has
/// its memory already.
const READER: &[Rule] = &[
    Call(libc::SYS_openat),
    Call(libc::SYS_read),
    Call(libc::SYS_write),
    Call(libc::SYS_close),
    // What Rust's library asks before it closes one, in development builds.
    When(libc::SYS_fcntl, &[(1, Equal(libc::F_GETFD as u32))]),
    Call(libc::SYS_exit_group),
];

/// Waiting for signals in a thread, instead of a handler.
const SIGNALS: &[Rule] = &[Call(libc::SYS_rt_sigtimedwait)];

/// What builds a machine and starts threads.
const SETUP: &[Rule] = &[
    // Threads, not processes. Each gets a list of its own, which can only be shorter.
    When(libc::SYS_clone, &[(0, With(libc::CLONE_THREAD as u32))]),
    // Its flags are behind a pointer. C libraries then use `clone`.
    Absent(libc::SYS_clone3),
    When(libc::SYS_prctl, &[(0, Equal(libc::PR_SET_NAME as u32))]),
    When(libc::SYS_prctl, &[(0, Equal(0x5356_4d41))]), // PR_SET_VMA: a name for a mapping
    Call(libc::SYS_seccomp),
    Call(libc::SYS_prlimit64),
    Call(libc::SYS_sched_getaffinity),
    Call(libc::SYS_sysinfo),
    Call(libc::SYS_uname),
    Call(libc::SYS_mincore),
    // How many pages the launch has touched, for `--timing`.
    Call(libc::SYS_getrusage),
    // The rings of disks, one for each queue.
    Call(libc::SYS_io_uring_setup),
    Call(libc::SYS_io_uring_register),
    // The handler of the signal that kicks processors of KVM.
    Call(libc::SYS_rt_sigaction),
    Call(libc::SYS_pipe2),
    Call(libc::SYS_dup),
    Call(libc::SYS_dup3),
    // Published ports, the control socket.
    Call(libc::SYS_bind),
    Call(libc::SYS_listen),
    // All of KVM (KVMIO is 0xae).
    When(libc::SYS_ioctl, &[(1, Masked(0xff00, 0xae00))]),
    // All of tap devices ('T' with numbers from 200 on: TUNSETIFF and its like).
    When(libc::SYS_ioctl, &[(1, Masked(0xffc0, 0x54c0))]),
    // What Rust's library marks descriptors with.
    When(libc::SYS_ioctl, &[(1, Equal(libc::FIOCLEX as u32))]),
    Legacy(83), // mkdir
    Call(libc::SYS_mkdirat),
];

/// The lists that together are `kind`'s.
pub(super) const fn lists(kind: Kind) -> &'static [&'static [Rule]] {
    match kind {
        Kind::Main => &[
            ALWAYS, KVM, DISK, RING, SOCKETS, INTERNET, LOCAL, TERMINAL, FILES, SIGNALS, SETUP,
        ],
        Kind::MainDirect => &[
            ALWAYS, KVM, DIRECT, DISK, RING, SOCKETS, INTERNET, LOCAL, TERMINAL, FILES, SIGNALS, SETUP,
        ],
        Kind::Kvm => &[ALWAYS, KVM],
        Kind::Direct => &[ALWAYS, DIRECT],
        Kind::Soft | Kind::Device => &[ALWAYS],
        Kind::Block => &[ALWAYS, DISK, RING],
        Kind::Network => &[ALWAYS, SOCKETS, INTERNET],
        Kind::Vsock => &[ALWAYS, SOCKETS, LOCAL],
        Kind::Console => &[ALWAYS, TERMINAL],
        Kind::Reader => &[READER],
        Kind::Control => &[
            ALWAYS, DISK, SOCKETS, LOCAL, LISTEN, TERMINAL, FILES, SIGNALS, SNAPSHOT,
        ],
    }
}

/// Sockets that others connect to, in the state directory.
const LISTEN: &[Rule] = &[Call(libc::SYS_bind), Call(libc::SYS_listen)];
