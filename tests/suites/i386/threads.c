/* Threads, their local storage, and segments of the local kind by set_thread_area and modify_ldt. */
#define _GNU_SOURCE
#include "check.h"
#include <asm/ldt.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static __thread int own = 7;
static __thread char large[5000];
static long long total;
static unsigned atomic;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t barrier;

static void *work(void *argument)
{
    int number = (int)(long)argument;
    CHECK(own == 7 && large[4999] == 0);
    own = number;
    large[4999] = (char)number;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 5000; i++) {
        pthread_mutex_lock(&lock);
        total += number;
        pthread_mutex_unlock(&lock);
        __sync_fetch_and_add(&atomic, 1);
    }
    CHECK(own == number && large[4999] == (char)number);
    return (void *)(long)own;
}

static unsigned read_gs_or_fs(unsigned selector, unsigned offset)
{
    unsigned value;
    __asm__ volatile("movl %%fs, %%edx\n\tmovl %1, %%fs\n\tmovl %%fs:(%2), %0\n\tmovl %%edx, %%fs"
                     : "=&r"(value)
                     : "r"(selector), "r"(offset)
                     : "edx");
    return value;
}

int main(void)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (long n = 0; n < THREADS; n++)
        CHECK(pthread_create(&threads[n], NULL, work, (void *)(n + 1)) == 0);
    for (long n = 0; n < THREADS; n++) {
        void *result;
        CHECK(pthread_join(threads[n], &result) == 0 && (long)result == n + 1);
    }
    CHECK(own == 7 && total == 5000ll * 36 && atomic == 5000 * THREADS);

    unsigned words[2] = { 0x11223344, 0x55667788 };
    struct user_desc area = {
        .entry_number = -1,
        .base_addr = (unsigned)words,
        .limit = sizeof words - 1,
        .seg_32bit = 1,
        .useable = 1,
    };
    CHECK(syscall(SYS_set_thread_area, &area) == 0 && area.entry_number < 16);
    unsigned selector = area.entry_number << 3 | 3;
    CHECK(read_gs_or_fs(selector, 0) == words[0] && read_gs_or_fs(selector, 4) == words[1]);
    struct user_desc found = { .entry_number = area.entry_number };
    CHECK(syscall(SYS_get_thread_area, &found) == 0 && found.base_addr == area.base_addr);
    /* The same by a local descriptor table. */
    area.entry_number = 3;
    CHECK(syscall(SYS_modify_ldt, 1, &area, sizeof area) == 0);
    CHECK(read_gs_or_fs(3 << 3 | 7, 4) == words[1]);
    return 0;
}
