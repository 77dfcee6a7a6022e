/*
 * POSIX behaviour of a shared directory, case by case in the manner of pjdfstest: every rule here holds
 * on a local file system too (run the program there with the directory as its argument).
 */
#include "fs-guest.h"

#define USER 1001
#define OTHER 1002

/* Runs @fn as an ordinary user, in a child; its number of failed line ends in why. */
static int as_user(uid_t uid, gid_t gid, void (*fn)(void))
{
	int status, fds[2];
	pid_t pid;
	ssize_t n;

	if (pipe(fds) < 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 ||
		    setresuid(uid, uid, uid) < 0)
			_exit(1);
		fn();
		(void)!write(fds[1], why, strlen(why));
		_exit(strcmp(why, "ok") != 0);
	}
	close(fds[1]);
	n = read(fds[0], why, sizeof(why) - 1);
	why[n > 0 ? n : 0] = '\0';
	close(fds[0]);
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : -1;
}

/* The child has said why. */
#define AS_USER(uid, fn)                             \
	do {                                         \
		if (as_user(uid, uid, fn) < 0)       \
			return;                      \
	} while (0)

static int put(const char *name, mode_t mode)
{
	int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, mode);

	return fd < 0 ? -1 : close(fd);
}

static mode_t mode_of(const char *name)
{
	struct stat st;

	return lstat(name, &st) == 0 ? st.st_mode & 07777 : 0xffff;
}

static bool later(struct timespec a, struct timespec b)
{
	return a.tv_sec > b.tv_sec || (a.tv_sec == b.tv_sec && a.tv_nsec > b.tv_nsec);
}

/* --- who may do what --- */

static void user_looks(void)
{
	struct stat st;

	FAILS(open("private", O_RDONLY), EACCES);
	FAILS(open("readable", O_WRONLY), EACCES);
	CHECK(open("readable", O_RDONLY) >= 0);
	FAILS(stat("closed/x", &st), EACCES);
	FAILS(open("closed", O_RDONLY | O_DIRECTORY), EACCES);
	FAILS(put("new", 0600), EACCES);
	FAILS(unlink("readable"), EACCES);
	FAILS(rename("readable", "r2"), EACCES);
	/* EPERM where hard links are protected. */
	CHECK(link("readable", "r2") < 0 && (errno == EACCES || errno == EPERM));
	FAILS(chmod("readable", 0777), EPERM);
	FAILS(chown("readable", USER, USER), EPERM);
	FAILS(truncate("readable", 0), EACCES);
	FAILS(utimensat(AT_FDCWD, "readable", (struct timespec[2]){ { 1, 0 }, { 1, 0 } }, 0), EPERM);
	FAILS(utimensat(AT_FDCWD, "readable", NULL, 0), EACCES);
	FAILS(access("private", R_OK), EACCES);
	CHECK(access("readable", R_OK) == 0);
	FAILS(setxattr("readable", "user.x", "1", 1, 0), EACCES);
	CHECK(mknod("dev", S_IFCHR | 0600, makedev(1, 3)) < 0);
}

static void permissions(void)
{
	CHECK(put("private", 0600) == 0 && put("readable", 0644) == 0);
	CHECK(mkdir("closed", 0700) == 0 && put("closed/x", 0666) == 0);
	AS_USER(USER, user_looks);
	CHECK(unlink("private") == 0 && unlink("readable") == 0);
	CHECK(unlink("closed/x") == 0 && rmdir("closed") == 0);
}

static void in_sticky(void)
{
	FAILS(unlink("tmp/theirs"), EPERM);
	FAILS(rename("tmp/theirs", "tmp/mine"), EPERM);
	CHECK(put("tmp/own", 0600) == 0 && rename("tmp/own", "tmp/own2") == 0);
	FAILS(rename("tmp/own2", "tmp/theirs"), EPERM);
	CHECK(unlink("tmp/own2") == 0);
}

static void sticky(void)
{
	CHECK(mkdir("tmp", 0) == 0 && chmod("tmp", 01777) == 0);
	CHECK(put("tmp/theirs", 0666) == 0 && chown("tmp/theirs", OTHER, OTHER) == 0);
	AS_USER(USER, in_sticky);
	CHECK(unlink("tmp/theirs") == 0 && rmdir("tmp") == 0);
}

static void owner_changes(void)
{
	CHECK(chmod("f", 04755) == 0 && mode_of("f") == 04755);
	/* Not in the file's group: no set-group-id for it. */
	CHECK(chmod("g", 02755) == 0 && mode_of("g") == 0755);
	FAILS(chown("f", OTHER, -1), EPERM);
	FAILS(chown("f", -1, OTHER), EPERM);
	CHECK(chown("f", USER, USER) == 0 && mode_of("f") == 0755);
	CHECK(utimensat(AT_FDCWD, "f", (struct timespec[2]){ { 5, 0 }, { 6, 0 } }, 0) == 0);
}

static void ownership(void)
{
	CHECK(put("f", 0600) == 0 && chown("f", USER, USER) == 0);
	CHECK(put("g", 0600) == 0 && chown("g", USER, OTHER) == 0);
	AS_USER(USER, owner_changes);
	/* Root too loses them by a change of owner. */
	CHECK(chmod("f", 06755) == 0 && chown("f", OTHER, OTHER) == 0 && mode_of("f") == 0755);
	CHECK(unlink("f") == 0 && unlink("g") == 0);
}

static void write_to_suid(void)
{
	int fd;

	CHECK((fd = open("suid", O_WRONLY)) >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
	CHECK(mode_of("suid") == 0777);
	CHECK(truncate("suid2", 0) == 0 && mode_of("suid2") == 0777);
	CHECK((fd = open("suid3", O_WRONLY | O_TRUNC)) >= 0 && close(fd) == 0);
	CHECK(mode_of("suid3") == 0777);
}

static void set_user_id(void)
{
	static const char *const names[] = { "suid", "suid2", "suid3" };
	int fd;

	for (int i = 0; i < 3; i++) {
		CHECK((fd = open(names[i], O_CREAT | O_WRONLY, 0600)) >= 0);
		CHECK(write(fd, "text", 4) == 4 && close(fd) == 0 && chmod(names[i], 06777) == 0);
	}
	AS_USER(USER, write_to_suid);
	for (int i = 0; i < 3; i++)
		CHECK(unlink(names[i]) == 0);
}

static void make_in_group(void)
{
	struct stat st;

	CHECK(put("grp/f", 0666) == 0 && stat("grp/f", &st) == 0);
	CHECK(st.st_uid == USER && st.st_gid == OTHER);
	CHECK(mkdir("grp/d", 0755) == 0 && stat("grp/d", &st) == 0);
	CHECK(st.st_gid == OTHER && (st.st_mode & S_ISGID));
	CHECK(put("grp/s", 02777) == 0 && !(mode_of("grp/s") & S_ISGID));
}

static void group_directories(void)
{
	CHECK(mkdir("grp", 0) == 0 && chown("grp", 0, OTHER) == 0 && chmod("grp", 02777) == 0);
	AS_USER(USER, make_in_group);
	CHECK(unlink("grp/f") == 0 && unlink("grp/s") == 0 && rmdir("grp/d") == 0);
	CHECK(rmdir("grp") == 0);
}

static void masks(void)
{
	struct stat st;

	umask(027);
	CHECK(put("u", 0777) == 0 && mkdir("ud", 0777) == 0 && mkfifo("up", 0777) == 0);
	umask(022);
	CHECK(mode_of("u") == 0750 && mode_of("ud") == 0750 && mode_of("up") == 0750);
	CHECK(lstat("u", &st) == 0 && unlink("u") == 0 && rmdir("ud") == 0 && unlink("up") == 0);
}

/* --- ACLs, as the attribute has them: version 2, then {tag, permissions, id} --- */

struct acl {
	uint32_t version;
	struct {
		uint16_t tag, perm;
		uint32_t id;
	} e[5];
};

static struct acl acl_for(uint32_t user, uint16_t perm)
{
	return (struct acl){ 2, { { 1, 6, -1u }, { 2, perm, user }, { 4, 0, -1u }, { 16, 7, -1u },
				  { 32, 0, -1u } } };
}

static void reads_by_acl(void)
{
	FAILS(open("f", O_WRONLY), EACCES);
	CHECK(open("f", O_RDONLY) >= 0);
}

static void cannot_read(void)
{
	FAILS(open("f", O_RDONLY), EACCES);
}

static void acls(void)
{
	struct acl a = acl_for(USER, 4), d = acl_for(USER, 7), back;

	d.e[0].perm = 7;
	CHECK(put("f", 0600) == 0);
	CHECK(setxattr("f", "system.posix_acl_access", &a, sizeof(a), 0) == 0);
	CHECK(mode_of("f") == 0670);
	AS_USER(USER, reads_by_acl);
	AS_USER(OTHER, cannot_read);
	/* The mask is the group's bits. */
	CHECK(chmod("f", 0600) == 0);
	AS_USER(USER, cannot_read);
	CHECK(removexattr("f", "system.posix_acl_access") == 0 && unlink("f") == 0);
	CHECK(mkdir("dir", 0755) == 0);
	CHECK(setxattr("dir", "system.posix_acl_default", &d, sizeof(d), 0) == 0);
	umask(077);
	CHECK(put("dir/f", 0664) == 0 && mkdir("dir/d", 0775) == 0);
	umask(022);
	/* What the directory says goes before the umask. */
	CHECK(getxattr("dir/f", "system.posix_acl_access", &back, sizeof(back)) == sizeof(back));
	CHECK(back.e[1].id == USER && back.e[3].perm == 6 && mode_of("dir/f") == 0660);
	CHECK(getxattr("dir/d", "system.posix_acl_default", &back, sizeof(back)) == sizeof(back));
	CHECK(unlink("dir/f") == 0 && rmdir("dir/d") == 0 && rmdir("dir") == 0);
}

/* --- errors --- */

static void errors(void)
{
	char name[257];
	struct stat st;

	memset(name, 'n', 256);
	name[256] = '\0';
	CHECK(put("f", 0644) == 0 && mkdir("d", 0755) == 0 && symlink("loop", "loop") == 0);
	FAILS(put(name, 0600), ENAMETOOLONG);
	FAILS(rename("f", name), ENAMETOOLONG);
	FAILS(stat("loop", &st), ELOOP);
	FAILS(open("loop", O_RDONLY), ELOOP);
	FAILS(open("f/x", O_RDONLY), ENOTDIR);
	FAILS(mkdir("f/x", 0755), ENOTDIR);
	FAILS(open("d", O_WRONLY), EISDIR);
	FAILS(open("f", O_RDONLY | O_DIRECTORY), ENOTDIR);
	FAILS(mkdir("f", 0755), EEXIST);
	FAILS(mkdir("d", 0755), EEXIST);
	FAILS(symlink("x", "f"), EEXIST);
	FAILS(mkdir("absent/x", 0755), ENOENT);
	FAILS(rename("absent", "x"), ENOENT);
	FAILS(link("absent", "x"), ENOENT);
	FAILS(rmdir("f"), ENOTDIR);
	FAILS(unlink("d"), EISDIR);
	FAILS(rmdir("."), EINVAL);
	FAILS(rmdir("d/.."), ENOTEMPTY);
	FAILS(rename("f", "d"), EISDIR);
	FAILS(rename("d", "f"), ENOTDIR);
	FAILS(link("d", "d2"), EPERM);
	FAILS(truncate("d", 0), EISDIR);
	FAILS(truncate("f", -1), EINVAL);
	FAILS(readlink("f", name, 10), EINVAL);
	FAILS(open("loop", O_RDONLY | O_NOFOLLOW), ELOOP);
	CHECK(unlink("f") == 0 && rmdir("d") == 0 && unlink("loop") == 0);
}

/* --- times --- */

static void times(void)
{
	struct stat a, b, d;
	int fd;

	CHECK(mkdir("td", 0755) == 0 && put("td/f", 0644) == 0);
	CHECK(stat("td/f", &a) == 0);
	usleep(20000);
	CHECK(chmod("td/f", 0600) == 0 && stat("td/f", &b) == 0);
	CHECK(later(b.st_ctim, a.st_ctim) && !later(b.st_mtim, a.st_mtim));
	usleep(20000);
	CHECK((fd = open("td/f", O_WRONLY)) >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
	CHECK(stat("td/f", &a) == 0 && later(a.st_mtim, b.st_mtim));
	CHECK(stat("td", &d) == 0);
	usleep(20000);
	CHECK(link("td/f", "td/g") == 0 && stat("td", &b) == 0 && later(b.st_mtim, d.st_mtim));
	CHECK(stat("td/f", &b) == 0 && later(b.st_ctim, a.st_ctim) && b.st_nlink == 2);
	usleep(20000);
	CHECK(rename("td/g", "td/h") == 0 && stat("td", &a) == 0);
	CHECK(later(a.st_mtim, d.st_mtim));
	usleep(20000);
	CHECK(unlink("td/h") == 0 && stat("td/f", &a) == 0 && later(a.st_ctim, b.st_ctim));
	CHECK(a.st_nlink == 1);
	/* Far away, and to the nanosecond. */
	CHECK(utimensat(AT_FDCWD, "td/f", (struct timespec[2]){ { 0, 1 }, { 4000000000, 999999999 } },
			0) == 0);
	CHECK(stat("td/f", &a) == 0 && a.st_mtim.tv_sec == 4000000000 &&
	      a.st_mtim.tv_nsec == 999999999 && a.st_atim.tv_nsec == 1);
	CHECK(unlink("td/f") == 0 && rmdir("td") == 0);
}

static void birth(void)
{
	struct statx x;

	CHECK(put("b", 0600) == 0);
	CHECK(statx(AT_FDCWD, "b", 0, STATX_BTIME, &x) == 0 && (x.stx_mask & STATX_BTIME));
	CHECK(x.stx_btime.tv_sec > 1000000000 && unlink("b") == 0);
}

/* --- names --- */

static void link_counts(void)
{
	struct stat st;

	CHECK(mkdir("l", 0755) == 0 && stat("l", &st) == 0 && st.st_nlink == 2);
	CHECK(mkdir("l/a", 0755) == 0 && mkdir("l/b", 0755) == 0);
	CHECK(stat("l", &st) == 0 && st.st_nlink == 4);
	CHECK(rename("l/a", "a") == 0 && stat("l", &st) == 0 && st.st_nlink == 3);
	CHECK(rmdir("l/b") == 0 && rmdir("l") == 0 && rmdir("a") == 0);
}

static void replacing(void)
{
	struct stat st;
	char buf[2];
	int fd;

	CHECK(put("one", 0600) == 0 && put("two", 0640) == 0);
	CHECK((fd = open("two", O_RDWR)) >= 0 && write(fd, "2", 1) == 1);
	CHECK(rename("one", "two") == 0 && mode_of("two") == 0600);
	/* Who has it open keeps what it was. */
	CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0 && pread(fd, buf, 2, 0) == 1);
	CHECK(close(fd) == 0);
	CHECK(link("two", "same") == 0 && rename("two", "same") == 0);
	CHECK(stat("two", &st) == 0 && stat("same", &st) == 0 && st.st_nlink == 2);
	CHECK(unlink("two") == 0 && unlink("same") == 0);
	CHECK(mkdir("d1", 0755) == 0 && mkdir("d2", 0755) == 0 && put("d2/x", 0600) == 0);
	FAILS(rename("d1", "d2"), ENOTEMPTY);
	CHECK(unlink("d2/x") == 0 && rename("d1", "d2") == 0 && rmdir("d2") == 0);
}

static void sockets(void)
{
	struct sockaddr_un { sa_family_t f; char path[100]; } sa = { AF_UNIX, "sock" };
	int s = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0), fd;
	char buf[4];

	CHECK(bind(s, (void *)&sa, sizeof(sa)) == 0 && listen(s, 1) == 0);
	CHECK(connect(c, (void *)&sa, sizeof(sa)) == 0 && close(s) == 0 && close(c) == 0);
	CHECK(unlink("sock") == 0);
	CHECK(mkfifo("fifo", 0600) == 0 && (fd = open("fifo", O_RDWR)) >= 0);
	CHECK(write(fd, "abc", 3) == 3 && read(fd, buf, 4) == 3 && close(fd) == 0);
	CHECK(unlink("fifo") == 0);
}

/* --- contents --- */

static void appends(void)
{
	int a, b;
	struct stat st;
	char buf[8] = "";

	CHECK((a = open("log", O_CREAT | O_WRONLY | O_APPEND, 0600)) >= 0);
	CHECK((b = open("log", O_WRONLY | O_APPEND)) >= 0);
	CHECK(write(a, "11", 2) == 2 && write(b, "22", 2) == 2 && write(a, "33", 2) == 2);
	CHECK(close(a) == 0 && close(b) == 0 && stat("log", &st) == 0 && st.st_size == 6);
	CHECK((a = open("log", O_RDONLY)) >= 0 && read(a, buf, 7) == 6);
	CHECK(strcmp(buf, "112233") == 0 && close(a) == 0 && unlink("log") == 0);
}

static void maps(void)
{
	char *p, *q, c = 0;
	int fd, status;
	pid_t pid;

	CHECK((fd = open("m", O_CREAT | O_RDWR, 0600)) >= 0 && ftruncate(fd, 16384) == 0);
	CHECK((p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED);
	CHECK((q = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)) != MAP_FAILED);
	pid = fork();
	if (pid == 0) {
		p[10000] = 'c';
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && p[10000] == 'c');
	CHECK(msync(p, 16384, MS_SYNC) == 0 && pread(fd, &c, 1, 10000) == 1 && c == 'c');
	CHECK(pwrite(fd, "w", 1, 5000) == 1 && p[5000] == 'w');
	q[1] = 'p';
	CHECK(pread(fd, &c, 1, 1) == 1 && c == 0);
	CHECK(munmap(p, 16384) == 0 && munmap(q, 16384) == 0 && close(fd) == 0 && unlink("m") == 0);
}

static void direct(void)
{
	static char buf[8192] __attribute__((aligned(4096)));
	int fd;

	CHECK((fd = open("o", O_CREAT | O_RDWR | O_DIRECT, 0600)) >= 0);
	memset(buf, 'd', sizeof(buf));
	CHECK(write(fd, buf, sizeof(buf)) == sizeof(buf));
	memset(buf, 0, sizeof(buf));
	CHECK(pread(fd, buf, 4096, 4096) == 4096 && buf[0] == 'd' && buf[4095] == 'd');
	CHECK(close(fd) == 0 && unlink("o") == 0);
}

static void temporary(void)
{
	char path[64];
	int fd;

	CHECK((fd = open(".", O_TMPFILE | O_EXCL | O_RDWR, 0600)) >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	FAILS(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW), ENOENT);
	CHECK(close(fd) == 0);
}

/*
 * The same random changes to a file and to memory must have the same result: reads and writes, shared
 * mappings, truncations, holes, copies, and the cache thrown away in between.
 */
#define FSX_MAX 262144

static unsigned fsx_state;

static unsigned fsx_random(unsigned n)
{
	fsx_state = fsx_state * 1103515245 + 12345;
	return (fsx_state >> 8) % n;
}

static unsigned char fsx_model[FSX_MAX], fsx_buf[FSX_MAX];
static size_t fsx_size;

static int fsx_fill(unsigned char *p, size_t len)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)fsx_random(256);
	return 0;
}

static void fsx_wrote(size_t off, size_t len)
{
	if (off > fsx_size)
		memset(fsx_model + fsx_size, 0, off - fsx_size);
	memcpy(fsx_model + off, fsx_buf, len);
	if (off + len > fsx_size)
		fsx_size = off + len;
}

static void fsx_mapped(int fd, size_t off, size_t len)
{
	unsigned char *p;

	if (off + len > fsx_size)
		return;
	CHECK((p = mmap(NULL, FSX_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED);
	CHECK(memcmp(p + off, fsx_model + off, len) == 0);
	fsx_fill(fsx_buf, len);
	memcpy(p + off, fsx_buf, len);
	fsx_wrote(off, len);
	CHECK(msync(p, FSX_MAX, MS_SYNC) == 0 && munmap(p, FSX_MAX) == 0);
}

static void fsx_step(int fd)
{
	size_t off = fsx_random(FSX_MAX - 1), len = 1 + fsx_random(40000);
	loff_t from = (loff_t)fsx_random(FSX_MAX), to = (loff_t)off;
	ssize_t n;

	if (off + len > FSX_MAX)
		len = FSX_MAX - off;
	switch (fsx_random(9)) {
	case 0:
	case 1:
		fsx_fill(fsx_buf, len);
		CHECK(pwrite(fd, fsx_buf, len, (off_t)off) == (ssize_t)len);
		fsx_wrote(off, len);
		break;
	case 2:
	case 3:
		n = pread(fd, fsx_buf, len, (off_t)off);
		CHECK(n == (ssize_t)(off >= fsx_size ? 0 : off + len > fsx_size ? fsx_size - off : len));
		CHECK(memcmp(fsx_buf, fsx_model + off, (size_t)n) == 0);
		break;
	case 4:
		CHECK(ftruncate(fd, (off_t)off) == 0);
		if (off > fsx_size)
			memset(fsx_model + fsx_size, 0, off - fsx_size);
		fsx_size = off;
		break;
	case 5:
		fsx_mapped(fd, off, len);
		break;
	case 6:
		CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
				(off_t)len) == 0);
		if (off < fsx_size)
			memset(fsx_model + off, 0, off + len > fsx_size ? fsx_size - off : len);
		break;
	case 7:
		/* Not onto itself. */
		if ((size_t)from + len > fsx_size ||
		    ((size_t)from < off + len && off < (size_t)from + len))
			break;
		memcpy(fsx_buf, fsx_model + from, len);
		CHECK(copy_file_range(fd, &from, fd, &to, len, 0) == (ssize_t)len);
		fsx_wrote(off, len);
		break;
	default:
		if (fsx_random(8) == 0)
			drop_caches();
		break;
	}
}

static void fsx(void)
{
	int fd, n = 700;
	struct stat st;

	fsx_state = 1;
	sscanf(argument, "%u", &fsx_state);
	fsx_size = 0;
	CHECK((fd = open("fsx", O_CREAT | O_TRUNC | O_RDWR, 0600)) >= 0);
	for (int i = 0; i < n && strcmp(why, "ok") == 0; i++) {
		fsx_step(fd);
		CHECK(fstat(fd, &st) == 0 && (size_t)st.st_size == fsx_size);
		if (i % 100 == 99) {
			CHECK(close(fd) == 0);
			CHECK((fd = open("fsx", O_RDWR)) >= 0);
		}
	}
	CHECK(pread(fd, fsx_buf, FSX_MAX, 0) == (ssize_t)fsx_size);
	CHECK(memcmp(fsx_buf, fsx_model, fsx_size) == 0);
	CHECK(close(fd) == 0 && unlink("fsx") == 0);
}

/* --- for test_fs.py alone: they need the host's part --- */

static int lock_fd = -1;

/* "lock DIR FILE": 0 if it is ours now. */
static void lock_file(void)
{
	struct flock fl = { .l_type = F_WRLCK };

	CHECK((lock_fd = open(argument, O_RDWR)) >= 0);
	CHECK(fcntl(lock_fd, F_SETLK, &fl) == 0);
}

static void unlock_file(void)
{
	CHECK(close(lock_fd) == 0);
}

static void flock_file(void)
{
	CHECK((lock_fd = open(argument, O_RDWR)) >= 0);
	CHECK(flock(lock_fd, LOCK_EX | LOCK_NB) == 0);
}

/* A child waits for a lock that this process holds; all else goes on meanwhile. */
static void waiting_lock(void)
{
	struct flock fl = { .l_type = F_WRLCK };
	int fd, status;
	struct stat st;
	pid_t pid;

	CHECK((fd = open("w", O_CREAT | O_RDWR, 0600)) >= 0 && fcntl(fd, F_SETLK, &fl) == 0);
	pid = fork();
	if (pid == 0) {
		fd = open("w", O_RDWR);
		_exit(fcntl(fd, F_SETLKW, &fl) < 0 || write(fd, "got", 3) != 3);
	}
	for (int i = 0; i < 20; i++) {
		usleep(10000);
		CHECK(put("x", 0600) == 0 && unlink("x") == 0);
	}
	CHECK(waitpid(pid, &status, WNOHANG) == 0);
	fl.l_type = F_UNLCK;
	CHECK(fcntl(fd, F_SETLK, &fl) == 0);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(fstat(fd, &st) == 0 && close(fd) == 0);
	CHECK(stat("w", &st) == 0 && st.st_size == 3 && unlink("w") == 0);
}

/* Waits for the host's lock. */
static void await_lock(void)
{
	struct flock fl = { .l_type = F_WRLCK };
	int fd;

	CHECK((fd = open(argument, O_RDWR)) >= 0 && fcntl(fd, F_SETLKW, &fl) == 0);
	CHECK(close(fd) == 0);
}

static void attributes_of_root(void)
{
	char buf[300];

	CHECK(put("a", 0600) == 0 && symlink("a", "l") == 0);
	CHECK(setxattr("a", "trusted.overlay.opaque", "y", 1, 0) == 0);
	CHECK(setxattr("a", "security.other", "z", 1, 0) == 0);
	CHECK(getxattr("a", "trusted.overlay.opaque", buf, sizeof(buf)) == 1 && buf[0] == 'y');
	FAILS(setxattr("a", "user.caisson.trusted.x", "1", 1, 0), EPERM);
	CHECK(listxattr("a", buf, sizeof(buf)) ==
	      (ssize_t)(sizeof("trusted.overlay.opaque") + sizeof("security.other")));
	CHECK(removexattr("a", "trusted.overlay.opaque") == 0);
	CHECK(unlink("l") == 0 && unlink("a") == 0);
}

/* The share as the upper layer of an overlay. */
static void overlay(void)
{
	struct stat st;
	char opts[200];

	CHECK(mkdir("up", 0755) == 0 && mkdir("work", 0755) == 0);
	mkdir("/low", 0755);
	mkdir("/over", 0755);
	mount("low", "/low", "tmpfs", 0, NULL);
	CHECK(mkdir("/low/d", 0755) == 0 && put("/low/d/f", 0644) == 0 && put("/low/g", 0644) == 0);
	snprintf(opts, sizeof(opts), "lowerdir=/low,upperdir=up,workdir=work");
	CHECK(mount("over", "/over", "overlay", 0, opts) == 0);
	CHECK(unlink("/over/g") == 0 && put("/over/n", 0600) == 0 && unlink("/over/d/f") == 0);
	CHECK(rmdir("/over/d") == 0 && mkdir("/over/d", 0700) == 0);
	FAILS(stat("/over/d/f", &st), ENOENT);
	FAILS(stat("/over/g", &st), ENOENT);
	CHECK(umount("/over") == 0);
	CHECK(lstat("up/g", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == 0);
	CHECK(umount("/low") == 0);
}

/* "submount DIR NAME": another device. */
static void submount(void)
{
	struct stat a, b;
	char path[100];

	/* Mounted when somebody goes there. */
	snprintf(path, sizeof(path), "%s/.", argument);
	CHECK(stat(".", &a) == 0 && stat(path, &b) == 0 && S_ISDIR(b.st_mode));
	CHECK(a.st_dev != b.st_dev);
	snprintf(path, sizeof(path), "%s/f", argument);
	CHECK(put(path, 0600) == 0 && stat(path, &a) == 0 && a.st_dev == b.st_dev);
	FAILS(rename(path, "f"), EXDEV);
	CHECK(unlink(path) == 0);
}

static int walk(const char *dir, int fds[], int max)
{
	char path[300];
	struct dirent *de;
	DIR *d = opendir(dir);
	int n = 0;

	while (d && n < max && (de = readdir(d))) {
		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, de->d_name);
		fds[n] = open(path, O_PATH);
		if (fds[n] < 0)
			break;
		n++;
	}
	if (d) {
		int e = errno;

		closedir(d);
		errno = e;
	}
	return n;
}

/* "many DIR N": holds N inodes at once. */
static void many(void)
{
	static int fds[5000];
	struct rlimit limit = { 5000, 5000 };
	int want = atoi(argument), n;

	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	n = walk(".", fds, want);
	if (n < want)
		snprintf(why, sizeof(why), "%s", strerror(errno));
	for (int i = 0; i < n; i++)
		close(fds[i]);
	drop_caches();
}

/* Small files, whose requests are counted: "make_small DIR N", "read_small", "list_small", "remove_small". */
static void small_name(int i, char name[16])
{
	snprintf(name, 16, "small%d", i);
}

static void make_small(void)
{
	char name[16], data[1000] = { 1 };

	for (int i = 0; i < atoi(argument); i++) {
		int fd;

		small_name(i, name);
		CHECK((fd = open(name, O_CREAT | O_WRONLY, 0644)) >= 0);
		CHECK(write(fd, data, sizeof(data)) == sizeof(data) && close(fd) == 0);
	}
	drop_caches();
}

static void read_small(void)
{
	char name[16], data[2000];

	for (int i = 0; i < atoi(argument); i++) {
		int fd;

		small_name(i, name);
		CHECK((fd = open(name, O_RDONLY)) >= 0);
		CHECK(read(fd, data, sizeof(data)) == 1000 && data[0] == 1 && close(fd) == 0);
	}
}

static void list_small(void)
{
	DIR *d = opendir(".");
	int n = 0;

	while (d && readdir(d))
		n++;
	CHECK(d && closedir(d) == 0 && n == atoi(argument) + 2);
}

static void remove_small(void)
{
	char name[16];

	for (int i = 0; i < atoi(argument); i++) {
		small_name(i, name);
		CHECK(unlink(name) == 0);
	}
}

static void fill_up(void)
{
	static char buf[65536];
	int fd;

	CHECK((fd = open("fill", O_CREAT | O_WRONLY, 0600)) >= 0);
	for (int i = 0; i < 100000; i++) {
		if (write(fd, buf, sizeof(buf)) < 0) {
			int e = errno;

			CHECK(e == ENOSPC && close(fd) == 0 && unlink("fill") == 0);
			CHECK(put("again", 0600) == 0 && unlink("again") == 0);
			return;
		}
	}
	CHECK(!"the disk never filled");
}

const struct test tests[] = {
	{ "permissions", permissions }, { "sticky", sticky }, { "ownership", ownership },
	{ "set_user_id", set_user_id }, { "group_directories", group_directories },
	{ "masks", masks }, { "acls", acls }, { "errors", errors }, { "times", times },
	{ "birth", birth }, { "link_counts", link_counts }, { "replacing", replacing },
	{ "sockets", sockets }, { "appends", appends }, { "maps", maps }, { "direct", direct },
	{ "temporary", temporary }, { "fsx", fsx },
	/* run_all() stops here. */
	{ "", NULL },
	{ "lock", lock_file }, { "unlock", unlock_file }, { "flock", flock_file },
	{ "waiting_lock", waiting_lock }, { "await_lock", await_lock },
	{ "attributes_of_root", attributes_of_root }, { "overlay", overlay },
	{ "submount", submount }, { "many", many }, { "fill_up", fill_up },
	{ "make_small", make_small }, { "read_small", read_small },
	{ "list_small", list_small }, { "remove_small", remove_small },
	{ NULL, NULL },
};
