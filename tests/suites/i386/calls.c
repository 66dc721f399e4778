/* System calls by INT 80h and by the vDSO, whose way is SYSENTER, and the vDSO's clock. */
#define _GNU_SOURCE
#include "check.h"
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long by_interrupt(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static long by_vdso(long entry, long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("call *%1"
                     : "=a"(result)
                     : "D"(entry), "0"(number), "b"(a), "c"(b), "d"(c)
                     : "memory");
    return result;
}

/* Six arguments, of which the last is in EBP: what the vDSO pushes must come back. */
static long map_by_vdso(long entry)
{
    struct {
        long entry, number;
    } call = { entry, SYS_mmap2 };
    long result;
    __asm__ volatile("pushl %%ebp\n\t"
                     "pushl (%%eax)\n\t"
                     "movl 4(%%eax), %%eax\n\t"
                     "xorl %%ebp, %%ebp\n\t"
                     "call *(%%esp)\n\t"
                     "addl $4, %%esp\n\t"
                     "popl %%ebp"
                     : "=a"(result)
                     : "0"(&call), "b"(0), "c"(4096), "d"(3), "S"(0x22), "D"(-1)
                     : "memory");
    return result;
}

int main(void)
{
    long entry = getauxval(AT_SYSINFO);
    CHECK(entry != 0);
    long pid = getpid();
    for (int i = 0; i < 10000; i++) {
        CHECK(by_interrupt(SYS_getpid, 0, 0, 0) == pid);
        CHECK(by_vdso(entry, SYS_getpid, 0, 0, 0) == pid);
    }
    CHECK(by_interrupt(SYS_write, -1, 0, 0) == -EBADF);
    CHECK(by_vdso(entry, SYS_write, -1, 0, 0) == -EBADF);
    CHECK(by_interrupt(9999, 0, 0, 0) == -ENOSYS && by_vdso(entry, 9999, 0, 0, 0) == -ENOSYS);
    unsigned char *page = (unsigned char *)map_by_vdso(entry);
    CHECK((unsigned long)page < -4096ul && page[0] == 0);
    page[4095] = 1;
    struct timespec first, second, kernel;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &first) == 0);
    CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel) == 0);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &second) == 0);
    long long of_first = first.tv_sec * 1000000000ll + first.tv_nsec;
    long long of_kernel = kernel.tv_sec * 1000000000ll + kernel.tv_nsec;
    long long of_second = second.tv_sec * 1000000000ll + second.tv_nsec;
    CHECK(of_first <= of_kernel && of_kernel <= of_second);
    return 0;
}
