/* Times of 64 bits. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    CHECK(sizeof(time_t) == 8);
    struct timespec now, later, pause = { 0, 5000000 };
    struct timeval day;
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0 && gettimeofday(&day, NULL) == 0);
    CHECK(day.tv_sec - now.tv_sec <= 1 && time(NULL) - now.tv_sec <= 2);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && nanosleep(&pause, NULL) == 0);
    CHECK(poll(NULL, 0, 5) == 0 && clock_gettime(CLOCK_MONOTONIC, &later) == 0);
    long long slept = (later.tv_sec - now.tv_sec) * 1000000000ll + later.tv_nsec - now.tv_nsec;
    CHECK(slept >= 10000000);
    /* Beyond 2038. */
    struct tm of_2050 = { .tm_year = 150, .tm_mday = 1 };
    time_t far = timegm(&of_2050);
    CHECK(far == 2524608000ll && gmtime(&far)->tm_year == 150);
    char name[] = "/tmp/time.XXXXXX";
    int file = mkstemp(name);
    struct timespec both[2] = { { far, 0 }, { far, 500 } };
    struct stat stat;
    CHECK(file >= 0 && futimens(file, both) == 0 && fstat(file, &stat) == 0 && unlink(name) == 0);
    CHECK(stat.st_mtime == far);
    return 0;
}
