/* Files beyond 4 GiB. */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void)
{
    char name[] = "/tmp/large.XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && sizeof(off_t) == 8 && unlink(name) == 0);
    off_t far = 5ll << 30;
    CHECK(pwrite(file, "far", 3, far) == 3 && lseek(file, 0, SEEK_END) == far + 3);
    char read[4] = "";
    CHECK(pread(file, read, 3, far) == 3 && strcmp(read, "far") == 0);
    struct stat stat;
    CHECK(fstat(file, &stat) == 0 && stat.st_size == far + 3 && stat.st_blocks < 1000);
    char *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, far);
    CHECK(mapped != MAP_FAILED && mapped[2] == 'r');
    mapped[0] = 'c';
    CHECK(pread(file, read, 3, far) == 3 && strcmp(read, "car") == 0);
    CHECK(lseek(file, 0, SEEK_DATA) == far && lseek(file, far - 10, SEEK_HOLE) == far - 10);
    CHECK(ftruncate(file, far - 1) == 0 && fstat(file, &stat) == 0 && stat.st_size == far - 1);
    FILE *stream = fdopen(file, "r+");
    CHECK(stream && fseeko(stream, far + 100, SEEK_SET) == 0 && fputc('x', stream) == 'x');
    CHECK(ftello(stream) == far + 101 && fclose(stream) == 0);
    return 0;
}
