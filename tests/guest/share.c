/* What programs do with a shared directory, one word each, for tests/tests/shares.rs.
 *
 *   share checks DIR                    mmap, O_DIRECT, rename, fsync, attributes, links, times: "NAME ok" each
 *   share lock FILE KIND START LEN      waits for a lock, says "held", keeps it until its standard input ends
 *   share try FILE KIND START LEN       says "taken" or "busy PID"
 *   share flock FILE KIND               "taken" or "busy"
 *   share interrupted FILE              waits for an exclusive lock until an alarm rings: "interrupted"
 *   share count FILE TIMES              adds 1 to the number in FILE, TIMES times, each under an exclusive lock
 *
 * KIND is shared or exclusive. A failure says what and why, and exits with 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static void wrong(const char *what)
{
	fprintf(stderr, "%s: not as it should be\n", what);
	exit(1);
}

static void ok(const char *name)
{
	printf("%s ok\n", name);
}

static int kind(const char *word)
{
	return strcmp(word, "shared") ? F_WRLCK : F_RDLCK;
}

static struct flock range(int type, const char *start, const char *len)
{
	struct flock lock = { .l_type = type, .l_whence = SEEK_SET };

	lock.l_start = atoll(start);
	lock.l_len = atoll(len);
	return lock;
}

static int open_or_fail(const char *path, int flags)
{
	int fd = open(path, flags, 0644);

	if (fd < 0)
		fail(path);
	return fd;
}

static void read_back(int fd, off_t at, const char *expected, const char *name)
{
	char buffer[64] = { 0 };

	if (pread(fd, buffer, strlen(expected), at) != (ssize_t)strlen(expected))
		fail(name);
	if (strcmp(buffer, expected))
		wrong(name);
}

static void checks(const char *dir)
{
	static char page[4096] __attribute__((aligned(4096)));
	struct timespec times[2] = { { 1000000000, 0 }, { 1000000000, 500000000 } };
	struct stat one, two;
	char value[16] = { 0 };
	char *mapped;
	int fd, other;

	if (chdir(dir))
		fail(dir);

	fd = open_or_fail("mapped", O_RDWR | O_CREAT);
	if (ftruncate(fd, 8192))
		fail("ftruncate");
	mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		fail("mmap");
	memcpy(mapped + 5000, "through memory", 14);
	if (msync(mapped, 8192, MS_SYNC))
		fail("msync");
	read_back(fd, 5000, "through memory", "mmap");
	ok("mmap");

	/* Two descriptors of one file agree at once, cached or not. */
	memset(page, 'd', sizeof page);
	fd = open_or_fail("direct", O_RDWR | O_CREAT | O_DIRECT);
	if (pwrite(fd, page, sizeof page, 4096) != sizeof page)
		fail("writing directly");
	other = open_or_fail("direct", O_RDWR);
	read_back(other, 4096, "dddd", "cached after direct");
	if (pwrite(other, "cccc", 4, 4096) != 4)
		fail("writing");
	memset(page, 0, sizeof page);
	if (pread(fd, page, sizeof page, 4096) != sizeof page || memcmp(page, "ccccdddd", 8))
		wrong("direct after cached");
	ok("direct");

	fd = open_or_fail("new", O_WRONLY | O_CREAT);
	if (write(fd, "new contents", 12) != 12 || fsync(fd) || fdatasync(fd) || close(fd))
		fail("fsync");
	fd = open_or_fail(".", O_RDONLY | O_DIRECTORY);
	if (fsync(fd))
		fail("fsync of a directory");
	ok("fsync");

	other = open_or_fail("replaced", O_RDWR | O_CREAT);
	if (write(other, "old contents", 12) != 12 || rename("new", "replaced"))
		fail("rename");
	if (!access("new", F_OK) || errno != ENOENT)
		wrong("the old name after a rename");
	read_back(other, 0, "old contents", "a replaced file that is open");
	if (renameat2(AT_FDCWD, "mapped", AT_FDCWD, "replaced", RENAME_NOREPLACE) == 0 || errno != EEXIST)
		wrong("rename without replacing");
	ok("rename");

	if (setxattr("replaced", "user.color", "blue", 4, 0) || getxattr("replaced", "user.color", value, 16) != 4)
		fail("xattr");
	if (strcmp(value, "blue"))
		wrong("xattr");
	ok("xattr");

	if (link("replaced", "linked") || stat("replaced", &one) || stat("linked", &two))
		fail("link");
	if (one.st_ino != two.st_ino || two.st_nlink != 2)
		wrong("link");
	ok("link");

	if (utimensat(AT_FDCWD, "linked", times, 0) || stat("replaced", &one))
		fail("utimensat");
	if (one.st_mtim.tv_sec != 1000000000 || one.st_mtim.tv_nsec != 500000000)
		wrong("mtime");
	ok("mtime");

	fd = open_or_fail("appended", O_WRONLY | O_CREAT | O_APPEND);
	other = open_or_fail("appended", O_WRONLY | O_APPEND);
	if (write(fd, "one,", 4) != 4 || write(other, "two,", 4) != 4 || write(fd, "three", 5) != 5)
		fail("append");
	ok("append");

	fd = open_or_fail("unlinked", O_RDWR | O_CREAT);
	if (unlink("unlinked") || write(fd, "still there", 11) != 11)
		fail("unlink");
	read_back(fd, 0, "still there", "an unlinked file");
	ok("unlink");

	fd = open_or_fail("sparse", O_RDWR | O_CREAT);
	if (pwrite(fd, "end", 3, 1 << 20) != 3 || fallocate(fd, 0, 0, 4096))
		fail("fallocate");
	if (lseek(fd, 4096, SEEK_DATA) < 4096)
		fail("lseek");
	ok("sparse");
}

static void rang(int signal)
{
	(void)signal;
}

int main(int count, char **words)
{
	const char *verb = count > 2 ? words[1] : "";
	struct flock lock;
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(verb, "checks")) {
		checks(words[2]);
	} else if (!strcmp(verb, "lock") && count == 6) {
		fd = open_or_fail(words[2], O_RDWR | O_CREAT);
		lock = range(kind(words[3]), words[4], words[5]);
		if (fcntl(fd, F_SETLKW, &lock))
			fail("F_SETLKW");
		puts("held");
		while (read(0, &lock, sizeof lock) > 0)
			;
	} else if (!strcmp(verb, "try") && count == 6) {
		fd = open_or_fail(words[2], O_RDWR | O_CREAT);
		lock = range(kind(words[3]), words[4], words[5]);
		if (!fcntl(fd, F_SETLK, &lock)) {
			puts("taken");
		} else if (errno == EAGAIN || errno == EACCES) {
			lock = range(kind(words[3]), words[4], words[5]);
			if (fcntl(fd, F_GETLK, &lock))
				fail("F_GETLK");
			printf("busy %d\n", lock.l_type == F_UNLCK ? -2 : (int)lock.l_pid);
		} else {
			fail("F_SETLK");
		}
	} else if (!strcmp(verb, "flock") && count == 4) {
		fd = open_or_fail(words[2], O_RDONLY);
		if (!flock(fd, (kind(words[3]) == F_RDLCK ? LOCK_SH : LOCK_EX) | LOCK_NB))
			puts("taken");
		else if (errno == EWOULDBLOCK)
			puts("busy");
		else
			fail("flock");
	} else if (!strcmp(verb, "interrupted")) {
		struct sigaction action = { .sa_handler = rang };

		fd = open_or_fail(words[2], O_RDWR);
		lock = range(F_WRLCK, "0", "0");
		sigaction(SIGALRM, &action, NULL);
		alarm(1);
		if (!fcntl(fd, F_SETLKW, &lock))
			puts("taken");
		else if (errno == EINTR)
			puts("interrupted");
		else
			fail("F_SETLKW");
	} else if (!strcmp(verb, "count") && count == 4) {
		fd = open_or_fail(words[2], O_RDWR);
		for (int left = atoi(words[3]); left > 0; left--) {
			char number[32] = { 0 };
			int len;

			lock = range(F_WRLCK, "0", "0");
			if (fcntl(fd, F_SETLKW, &lock))
				fail("F_SETLKW");
			if (pread(fd, number, sizeof number - 1, 0) < 0)
				fail("read");
			len = snprintf(number, sizeof number, "%08d\n", atoi(number) + 1);
			if (pwrite(fd, number, len, 0) != len)
				fail("write");
			lock.l_type = F_UNLCK;
			if (fcntl(fd, F_SETLK, &lock))
				fail("F_UNLCK");
		}
	} else {
		fprintf(stderr, "share: see the top of its source\n");
		return 2;
	}
	return 0;
}
