/* Signals: what the kernel says of a fault, the frame that a handler may change, stacks, nesting, restarts. */
#define _GNU_SOURCE
#include "check.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile sig_atomic_t seen, ticks;
static void *volatile address;
static volatile int code;
static char *other_stack;

static void leave(int number, siginfo_t *info, void *context)
{
    (void)context;
    seen = number;
    address = info->si_addr;
    code = info->si_code;
    siglongjmp(back, 1);
}

static void skip(int number, siginfo_t *info, void *context)
{
    ucontext_t *where = context;
    (void)info;
    seen = number;
    /* Past UD2, and a register with another value. */
    where->uc_mcontext.gregs[REG_EIP] += 2;
    where->uc_mcontext.gregs[REG_EBX] = 42;
}

static void on_other_stack(int number)
{
    char here;
    CHECK(&here >= other_stack && &here < other_stack + 65536);
    seen = number;
}

static void nested(int number)
{
    if (number == SIGUSR1)
        raise(SIGUSR2);
    ticks++;
}

static void count(int number)
{
    (void)number;
    ticks++;
}

static void handle(int number, void (*action)(int, siginfo_t *, void *), int flags)
{
    struct sigaction how = { .sa_sigaction = action, .sa_flags = SA_SIGINFO | flags };
    CHECK(sigaction(number, &how, NULL) == 0);
}

int main(void)
{
    handle(SIGSEGV, leave, 0);
    char *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    if (sigsetjmp(back, 1) == 0)
        page[17] = 1;
    CHECK(seen == SIGSEGV && address == page + 17 && code == SEGV_ACCERR);
    if (sigsetjmp(back, 1) == 0)
        *(volatile int *)16 = 1;
    CHECK(address == (void *)16 && code == SEGV_MAPERR);

    handle(SIGFPE, leave, 0);
    volatile int dividend = 7, zero = 0;
    if (sigsetjmp(back, 1) == 0)
        zero = dividend / zero;
    CHECK(seen == SIGFPE && code == FPE_INTDIV);
    seen = 0;
    if (sigsetjmp(back, 1) == 0) {
        /* The x87's division by zero, unmasked. */
        unsigned short control = 0x37b;
        __asm__ volatile("fninit\n\tfldcw %0\n\tfld1\n\tfldz\n\tfdivrp\n\tfwait" : : "m"(control));
    }
    __asm__ volatile("fninit");
    CHECK(seen == SIGFPE && code == FPE_FLTDIV);

    handle(SIGILL, skip, 0);
    int ebx = 1;
    __asm__ volatile("ud2" : "+b"(ebx));
    CHECK(seen == SIGILL && ebx == 42);

    other_stack = malloc(65536);
    stack_t stack = { .ss_sp = other_stack, .ss_size = 65536 };
    CHECK(sigaltstack(&stack, NULL) == 0);
    struct sigaction how = { .sa_handler = on_other_stack, .sa_flags = SA_ONSTACK };
    CHECK(sigaction(SIGUSR1, &how, NULL) == 0 && raise(SIGUSR1) == 0 && seen == SIGUSR1);

    signal(SIGUSR1, nested);
    signal(SIGUSR2, nested);
    CHECK(raise(SIGUSR1) == 0 && ticks == 2);

    ticks = 0;
    signal(SIGALRM, count);
    struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    double sum = 0;
    /* The x87 state lives across each of them. */
    while (ticks < 50) {
        double before = sum;
        sum = sum * 0.5 + 1.0;
        CHECK(sum >= before && sum <= 2.0);
    }
    /* A read is interrupted and goes on. */
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        usleep(20000);
        _exit(write(pipes[1], "x", 1) != 1);
    }
    char byte;
    CHECK(read(pipes[0], &byte, 1) == 1 && byte == 'x');
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return 0;
}
