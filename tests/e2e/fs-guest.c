/* Behaviour of a shared directory as test_volumes.py asks for it. */
#include "fs-guest.h"

static void basic(void)
{
	struct stat st;
	char buf[16];
	int fd;

	CHECK((fd = open("a", O_CREAT | O_EXCL | O_RDWR, 0640)) >= 0);
	CHECK(write(fd, "hello", 5) == 5);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 5 && (st.st_mode & 07777) == 0640);
	CHECK(pread(fd, buf, 16, 1) == 4 && memcmp(buf, "ello", 4) == 0);
	CHECK(fsync(fd) == 0);
	CHECK(close(fd) == 0);
	FAILS(open("a", O_CREAT | O_EXCL | O_RDWR, 0640), EEXIST);
	CHECK((fd = open("a", O_WRONLY | O_APPEND)) >= 0);
	CHECK(write(fd, " you", 4) == 4);
	CHECK(close(fd) == 0);
	CHECK(stat("a", &st) == 0 && st.st_size == 9);
	CHECK((fd = open("a", O_WRONLY | O_TRUNC)) >= 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 0);
	CHECK(close(fd) == 0);
	CHECK(mkdir("d", 0750) == 0);
	CHECK(stat("d", &st) == 0 && (st.st_mode & 07777) == 0750);
	CHECK(rename("a", "d/b") == 0);
	FAILS(stat("a", &st), ENOENT);
	FAILS(rmdir("d"), ENOTEMPTY);
	FAILS(unlink("d"), EISDIR);
	FAILS(rmdir("d/b"), ENOTDIR);
	CHECK(unlink("d/b") == 0);
	CHECK(rmdir("d") == 0);
	FAILS(open("d/b", O_RDONLY), ENOENT);
}

static void names(void)
{
	char name[300];
	struct stat st;

	memset(name, 'n', 255);
	name[255] = '\0';
	CHECK(mkdir(name, 0700) == 0 && stat(name, &st) == 0 && rmdir(name) == 0);
	name[255] = 'n';
	name[256] = '\0';
	FAILS(mkdir(name, 0700), ENAMETOOLONG);
	CHECK(mkdir("with space \xc3\xa9 \xff\n", 0700) == 0);
	CHECK(rmdir("with space \xc3\xa9 \xff\n") == 0);
	CHECK(mkdir("...", 0700) == 0 && rmdir("...") == 0);
}

static void links(void)
{
	struct stat st;
	char buf[64];
	int fd;

	CHECK((fd = open("f", O_CREAT | O_RDWR, 0600)) >= 0 && close(fd) == 0);
	CHECK(link("f", "g") == 0);
	CHECK(stat("f", &st) == 0 && st.st_nlink == 2);
	CHECK(symlink("f", "s") == 0);
	CHECK(readlink("s", buf, sizeof(buf)) == 1 && buf[0] == 'f');
	CHECK(lstat("s", &st) == 0 && S_ISLNK(st.st_mode));
	CHECK(lchown("s", 5, 6) == 0 && lstat("s", &st) == 0 && st.st_uid == 5);
	CHECK(stat("f", &st) == 0 && st.st_uid == 0);
	FAILS(link("f", "g"), EEXIST);
	CHECK(unlink("f") == 0 && unlink("g") == 0);
	FAILS(stat("s", &st), ENOENT);
	CHECK(unlink("s") == 0);
}

/* Links are the guest's own: they lead to its files, not to the host's. */
static void escape(void)
{
	struct stat root, st;

	CHECK(symlink("/etc/passwd", "abs") == 0 && symlink("../../../../etc/passwd", "rel") == 0);
	FAILS(open("abs", O_RDONLY), ENOENT);
	FAILS(open("rel", O_RDONLY), ENOENT);
	CHECK(unlink("abs") == 0 && unlink("rel") == 0);
	CHECK(stat("/", &root) == 0 && stat("../..", &st) == 0 && st.st_dev == root.st_dev);
}

static void attributes(void)
{
	struct timespec ts[2] = { { 1000, 5 }, { 2000, 7 } };
	struct stat st;
	int fd;

	CHECK((fd = open("t", O_CREAT | O_RDWR, 0600)) >= 0);
	CHECK(fchmod(fd, 04751) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 04751);
	CHECK(chown("t", 1000, 2000) == 0 && stat("t", &st) == 0);
	CHECK(st.st_uid == 1000 && st.st_gid == 2000 && (st.st_mode & 07777) == 0751);
	CHECK(utimensat(AT_FDCWD, "t", ts, 0) == 0 && stat("t", &st) == 0);
	CHECK(st.st_atim.tv_sec == 1000 && st.st_mtim.tv_sec == 2000 && st.st_mtim.tv_nsec == 7);
	CHECK(ftruncate(fd, 12345) == 0 && fstat(fd, &st) == 0 && st.st_size == 12345);
	CHECK(truncate("t", 7) == 0 && stat("t", &st) == 0 && st.st_size == 7);
	CHECK(close(fd) == 0 && unlink("t") == 0);
}

static void owner(void)
{
	struct stat st;
	gid_t extra = 77;
	pid_t pid;
	int fd, status;

	CHECK(mkdir("open", 0) == 0 && chmod("open", 0777) == 0);
	/* Writable by a supplementary group only. */
	CHECK(mkdir("group", 0) == 0 && chown("group", 0, extra) == 0 && chmod("group", 0770) == 0);
	pid = fork();
	if (pid == 0) {
		if (setgroups(1, &extra) < 0 || setresgid(44, 44, 44) < 0 || setresuid(33, 33, 33) < 0)
			_exit(1);
		fd = open("open/x", O_CREAT | O_RDWR, 0600);
		if (fd < 0 || write(fd, "x", 1) != 1)
			_exit(2);
		if (mkdir("open/d", 0700) < 0 || symlink("x", "open/l") < 0 ||
		    mkfifo("open/p", 0600) < 0)
			_exit(3);
		if (open("group/y", O_CREAT | O_RDWR, 0600) < 0)
			_exit(4);
		if (open("other", O_CREAT | O_RDWR, 0600) >= 0)
			_exit(5);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (status != 0) {
		snprintf(why, sizeof(why), "owner: the child ended with %x", status);
		return;
	}
	CHECK(stat("open/x", &st) == 0 && st.st_uid == 33 && st.st_gid == 44);
	CHECK(stat("open/d", &st) == 0 && st.st_uid == 33 && st.st_gid == 44);
	CHECK(lstat("open/l", &st) == 0 && st.st_uid == 33);
	CHECK(stat("group/y", &st) == 0 && st.st_uid == 33);
	CHECK(unlink("open/x") == 0 && rmdir("open/d") == 0 && unlink("open/l") == 0);
	CHECK(unlink("open/p") == 0 && rmdir("open") == 0);
	CHECK(unlink("group/y") == 0 && rmdir("group") == 0);
}

static void special(void)
{
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct stat st;

	(void)s;
	CHECK(mkfifo("p", 0600) == 0 && stat("p", &st) == 0 && S_ISFIFO(st.st_mode));
	CHECK(unlink("p") == 0);
	FAILS(mknod("c", S_IFCHR | 0600, makedev(1, 3)), EPERM);
	FAILS(mknod("b", S_IFBLK | 0600, makedev(8, 0)), EPERM);
	CHECK(mknod("w", S_IFCHR | 0600, 0) == 0 && unlink("w") == 0);
}

static void big(void)
{
	static unsigned char buf[1 << 20] __attribute__((aligned(4096)));
	int fd;

	CHECK((fd = open("big", O_CREAT | O_RDWR, 0600)) >= 0);
	for (int i = 0; i < 16; i++) {
		for (size_t k = 0; k < sizeof(buf); k++)
			buf[k] = (unsigned char)(k * 7 + (k >> 8) + (size_t)i);
		CHECK(write(fd, buf, sizeof(buf)) == sizeof(buf));
	}
	CHECK(close(fd) == 0);
	drop_caches();
	for (int direct = 0; direct < 2; direct++) {
		CHECK((fd = open("big", O_RDONLY | (direct ? O_DIRECT : 0))) >= 0);
		for (int i = 0; i < 16; i++) {
			CHECK(read(fd, buf, sizeof(buf)) == sizeof(buf));
			for (size_t k = 0; k < sizeof(buf); k++)
				CHECK(buf[k] == (unsigned char)(k * 7 + (k >> 8) + (size_t)i));
		}
		CHECK(read(fd, buf, 1) == 0);
		CHECK(close(fd) == 0);
	}
	CHECK(unlink("big") == 0);
}

static int count(DIR *d)
{
	int n = 0;

	while (readdir(d))
		n++;
	return n;
}

static void directory(void)
{
	struct dirent *de;
	char name[32];
	struct stat st;
	long pos = 0;
	DIR *d;
	int fd;

	CHECK(mkdir("many", 0700) == 0 && chdir("many") == 0);
	for (int i = 0; i < 600; i++) {
		snprintf(name, sizeof(name), "entry-with-a-name-%04d", i);
		CHECK((fd = open(name, O_CREAT | O_WRONLY, 0600)) >= 0 && close(fd) == 0);
	}
	drop_caches();
	CHECK((d = opendir(".")) != NULL);
	CHECK(count(d) == 602);
	rewinddir(d);
	for (int i = 0; i < 250; i++)
		CHECK((de = readdir(d)) != NULL);
	pos = telldir(d);
	CHECK(count(d) == 352);
	seekdir(d, pos);
	CHECK(count(d) == 352);
	rewinddir(d);
	while ((de = readdir(d)))
		CHECK(de->d_name[0] == '.' || (lstat(de->d_name, &st) == 0 && st.st_ino == de->d_ino));
	for (int i = 0; i < 600; i++) {
		snprintf(name, sizeof(name), "entry-with-a-name-%04d", i);
		CHECK(unlink(name) == 0);
	}
	rewinddir(d);
	CHECK(count(d) == 2);
	CHECK(closedir(d) == 0 && chdir("..") == 0 && rmdir("many") == 0);
}

static void attrs(void)
{
	char buf[256];
	int fd;

	CHECK((fd = open("x", O_CREAT | O_RDWR, 0600)) >= 0 && close(fd) == 0);
	CHECK(setxattr("x", "user.one", "value", 5, 0) == 0);
	FAILS(setxattr("x", "user.one", "v", 1, XATTR_CREATE), EEXIST);
	CHECK(getxattr("x", "user.one", buf, sizeof(buf)) == 5 && memcmp(buf, "value", 5) == 0);
	CHECK(getxattr("x", "user.one", NULL, 0) == 5);
	FAILS(getxattr("x", "user.one", buf, 2), ERANGE);
	FAILS(getxattr("x", "user.two", buf, sizeof(buf)), ENODATA);
	CHECK(listxattr("x", buf, sizeof(buf)) == 9 && strcmp(buf, "user.one") == 0);
	FAILS(setxattr("x", "trusted.overlay.opaque", "y", 1, 0), EOPNOTSUPP);
	FAILS(setxattr("x", "security.other", "y", 1, 0), EOPNOTSUPP);
	CHECK(removexattr("x", "user.one") == 0 && listxattr("x", buf, sizeof(buf)) == 0);
	CHECK(unlink("x") == 0);
}

static void holes(void)
{
	struct stat st;
	int fd;

	CHECK((fd = open("h", O_CREAT | O_RDWR, 0600)) >= 0);
	CHECK(fallocate(fd, 0, 0, 1 << 20) == 0 && fstat(fd, &st) == 0 && st.st_size == 1 << 20);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 19) == 0);
	CHECK(pwrite(fd, "data", 4, 600000) == 4);
	CHECK(lseek(fd, 0, SEEK_DATA) >= 1 << 19 && lseek(fd, 0, SEEK_HOLE) == 0);
	CHECK(close(fd) == 0 && unlink("h") == 0);
}

static void copies(void)
{
	char buf[8] = "";
	loff_t a = 2, b = 0;
	int from, to;

	CHECK((from = open("from", O_CREAT | O_RDWR, 0600)) >= 0);
	CHECK((to = open("to", O_CREAT | O_RDWR, 0600)) >= 0);
	CHECK(write(from, "0123456789", 10) == 10);
	CHECK(copy_file_range(from, &a, to, &b, 5, 0) == 5);
	CHECK(pread(to, buf, 8, 0) == 5 && strcmp(buf, "23456") == 0);
	close(from);
	close(to);
	CHECK(unlink("from") == 0 && unlink("to") == 0);
}

static void temporary(void)
{
	char path[64];
	struct stat st;
	int fd;

	CHECK((fd = open(".", O_TMPFILE | O_RDWR, 0600)) >= 0);
	CHECK(write(fd, "t", 1) == 1 && fstat(fd, &st) == 0 && st.st_nlink == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0);
	CHECK(close(fd) == 0 && stat("named", &st) == 0 && st.st_size == 1);
	CHECK(unlink("named") == 0);
	/* An open file without a name goes on living. */
	CHECK((fd = open("gone", O_CREAT | O_RDWR, 0600)) >= 0 && unlink("gone") == 0);
	CHECK(write(fd, "still", 5) == 5 && pread(fd, path, 8, 0) == 5);
	CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0 && close(fd) == 0);
}

static void renames(void)
{
	struct stat st;

	CHECK(mkdir("r1", 0700) == 0 && mkdir("r2", 0700) == 0 && mkdir("r1/in", 0700) == 0);
	FAILS(renameat2(AT_FDCWD, "r1", AT_FDCWD, "r2", RENAME_NOREPLACE), EEXIST);
	CHECK(renameat2(AT_FDCWD, "r1", AT_FDCWD, "r2", RENAME_EXCHANGE) == 0);
	CHECK(stat("r2/in", &st) == 0);
	FAILS(rename("r2", "r2/in/x"), EINVAL);
	CHECK(rename("r1", "r2/in") == 0);
	CHECK(rmdir("r2/in") == 0 && rmdir("r2") == 0);
}

static void locks(void)
{
	struct flock fl = { .l_type = F_WRLCK };
	int a, b;

	CHECK((a = open("lock", O_CREAT | O_RDWR, 0600)) >= 0);
	CHECK((b = open("lock", O_RDWR)) >= 0);
	CHECK(flock(a, LOCK_EX) == 0);
	FAILS(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	CHECK(fcntl(a, F_SETLK, &fl) == 0);
	close(a);
	close(b);
	CHECK(unlink("lock") == 0);
}

static void mapping(void)
{
	char *p, buf[8];
	int fd;

	CHECK((fd = open("m", O_CREAT | O_RDWR, 0600)) >= 0 && ftruncate(fd, 8192) == 0);
	CHECK((p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED);
	strcpy(p + 5000, "mapped");
	CHECK(msync(p, 8192, MS_SYNC) == 0 && munmap(p, 8192) == 0);
	drop_caches();
	CHECK(pread(fd, buf, 7, 5000) == 7 && strcmp(buf, "mapped") == 0);
	CHECK(close(fd) == 0 && unlink("m") == 0);
}

static void whole(void)
{
	struct statvfs st;
	int fd;

	CHECK(statvfs(".", &st) == 0 && st.f_blocks > 0 && st.f_namemax == 255);
	CHECK((fd = open(".", O_RDONLY | O_DIRECTORY)) >= 0);
	CHECK(syncfs(fd) == 0 && fsync(fd) == 0 && close(fd) == 0);
}

static void parallel(void)
{
	pid_t pid[4];
	int status;

	for (int k = 0; k < 4; k++) {
		pid[k] = fork();
		if (pid[k] != 0)
			continue;
		for (int i = 0; i < 60; i++) {
			char name[32], to[32], buf[5000], back[5000];
			int fd;

			snprintf(name, sizeof(name), "p%d-%d", k, i);
			snprintf(to, sizeof(to), "q%d-%d", k, i);
			memset(buf, k + i, sizeof(buf));
			fd = open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
			if (fd < 0 || write(fd, buf, sizeof(buf)) != sizeof(buf) ||
			    rename(name, to) < 0 || pread(fd, back, sizeof(back), 0) != sizeof(back) ||
			    memcmp(buf, back, sizeof(buf)) != 0 || close(fd) < 0 || unlink(to) < 0)
				_exit(1);
		}
		_exit(0);
	}
	for (int k = 0; k < 4; k++)
		CHECK(waitpid(pid[k], &status, 0) == pid[k] && status == 0);
}

static void readonly(void)
{
	struct stat st;
	char buf[8];
	int fd;

	CHECK((fd = open("file", O_RDONLY)) >= 0 && read(fd, buf, 8) > 0 && close(fd) == 0);
	FAILS(open("file", O_WRONLY), EROFS);
	FAILS(open("file", O_RDONLY | O_TRUNC), EROFS);
	FAILS(open("new", O_CREAT | O_RDONLY, 0600), EROFS);
	FAILS(mkdir("new", 0700), EROFS);
	FAILS(unlink("file"), EROFS);
	FAILS(rename("file", "other"), EROFS);
	FAILS(chmod("file", 0600), EROFS);
	FAILS(truncate("file", 0), EROFS);
	FAILS(symlink("x", "y"), EROFS);
	FAILS(setxattr("file", "user.a", "b", 1, 0), EROFS);
	CHECK(stat("file", &st) == 0);
}

const struct test tests[] = {
	{ "basic", basic }, { "names", names }, { "links", links }, { "escape", escape },
	{ "attributes", attributes }, { "owner", owner }, { "special", special }, { "big", big },
	{ "directory", directory }, { "attrs", attrs }, { "holes", holes }, { "copies", copies },
	{ "temporary", temporary }, { "renames", renames }, { "locks", locks },
	{ "mapping", mapping }, { "whole", whole }, { "parallel", parallel },
	{ "readonly", readonly },
	{ NULL, NULL },
};
