/* ptrace: single steps, breakpoints, registers of all kinds, system calls, a watchpoint. */
#define _GNU_SOURCE
#include "check.h"
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int watched;

__attribute__((noinline)) static int place(int a)
{
    __asm__ volatile("");
    return a * 3;
}

static void child(void)
{
    CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
    int result = place(14);
    watched = result;
    syscall(SYS_getppid);
    _exit(result == 42 ? 7 : 8);
}

static int wait_for(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

int main(void)
{
    pid_t pid = fork();
    if (pid == 0)
        child();
    CHECK(WIFSTOPPED(wait_for(pid)));
    struct user_regs_struct registers;
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0);
    unsigned long before = registers.eip;
    for (int n = 0; n < 20; n++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0);
        int status = wait_for(pid);
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    }
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0 && (unsigned long)registers.eip != before);

    errno = 0;
    long text = ptrace(PTRACE_PEEKTEXT, pid, place, NULL);
    CHECK(errno == 0);
    CHECK(ptrace(PTRACE_POKETEXT, pid, place, (void *)((text & ~0xff) | 0xcc)) == 0);
    CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0);
    int status = wait_for(pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0);
    CHECK((unsigned long)registers.eip == (unsigned long)place + 1);
    registers.eip--;
    CHECK(ptrace(PTRACE_SETREGS, pid, NULL, &registers) == 0);
    CHECK(ptrace(PTRACE_POKETEXT, pid, place, (void *)text) == 0);

    struct user_fpxregs_struct floating;
    CHECK(ptrace(PTRACE_GETFPXREGS, pid, NULL, &floating) == 0 && (floating.cwd & 0x3f) == 0x3f);

    /* A write to `watched`, 4 bytes. */
    CHECK(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), (void *)&watched) == 0);
    CHECK(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), (void *)0xd0001) == 0);
    CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0);
    status = wait_for(pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    errno = 0;
    long dr6 = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user, u_debugreg[6]), NULL);
    CHECK(errno == 0 && (dr6 & 1));
    CHECK(ptrace(PTRACE_PEEKDATA, pid, &watched, NULL) == 42);
    CHECK(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), NULL) == 0);

    /* The call that it makes next, at its entry and at its end. */
    CHECK(ptrace(PTRACE_SYSCALL, pid, NULL, NULL) == 0 && WIFSTOPPED(wait_for(pid)));
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0 && registers.orig_eax == SYS_getppid);
    CHECK(ptrace(PTRACE_SYSCALL, pid, NULL, NULL) == 0 && WIFSTOPPED(wait_for(pid)));
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0 && registers.eax == getpid());
    CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0);
    status = wait_for(pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    return 0;
}
