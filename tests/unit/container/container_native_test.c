/* Real containers, on the machine's kernel but in fresh namespaces: see harness.h. */
#include "../test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "harness.h"

#define SH(script) "'args':['sh','-c','" script "']"

static struct result r;

static void expect_out(const char *patch, const char *want)
{
	harness_container(patch, 0, &r);
	if (r.create || r.start || r.code || strcmp(r.out, want) != 0)
		fail_msg("create %d start %d code %d error \"%s\" out \"%s\" err \"%s\" want "
			 "\"%s\"",
			 r.create, r.start, r.code, r.error.msg, r.out, r.err, want);
}

static void expect_error(const char *patch, int code, const char *text)
{
	harness_container(patch, 0, &r);
	if (r.error.code != code || !strstr(r.error.msg, text))
		fail_msg("code %d, \"%s\", out \"%s\"", r.error.code, r.error.msg, r.out);
}

static void runs_and_exits(void **state)
{
	harness_container("{'process':{" SH("echo out; echo err >&2; exit 7") "}}", 0, &r);
	assert_string_equal(r.error.msg, "");
	assert_string_equal(r.out, "out\n");
	assert_string_equal(r.err, "err\n");
	assert_int_equal(r.code, 7);
	harness_container("{'process':{" SH("kill -9 $$; kill -TERM $$") "}}", 0, &r);
	assert_int_equal(r.create, 0);
}

static void namespaces_are_new(void **state)
{
	expect_out("{'hostname':'inside','domainname':'dom','process':{" SH(
			   "echo $$; hostname; cat /proc/sys/kernel/domainname; ip -o link show lo "
			   "| wc -l; "
			   "grep ^0: /proc/self/cgroup; ls /proc/1/exe >/dev/null && ls /") "}}",
		   "1\ninside\ndom\n1\n0::/\nbin\ndev\netc\nhome\nlocked\nproc\nroot\nsys\ntmp\n");
}

static void environment_and_cwd(void **state)
{
	expect_out("{'process':{'cwd':'/new/dir','env':['PATH=/bin','A=b c'],'args':['env']}}",
		   "PATH=/bin\nA=b c\nHOME=/root\n");
	expect_out("{'process':{'cwd':'/new/dir','args':['pwd']}}", "/new/dir\n");
	expect_error("{'process':{'cwd':'/etc/passwd'}}", -ENOTDIR, "process.cwd");
}

static void users_and_groups(void **state)
{
	const char *show = "id -u; id -g; id -G; echo $HOME";
	char patch[512];

	expect_out("{'process':{'user':{'uid':5,'gid':6,'additionalGids':[7,8]}," SH(
			   "id -u; id -g; id -G; umask") "}}",
		   "5\n6\n6 7 8\n0022\n");
	(void)snprintf(patch, sizeof(patch),
		       "{'process':{'user':{'username':'www'},"
		       "'args':['sh','-c','%s']}}",
		       show);
	expect_out(patch, "33\n34\n34 29\n/home/www\n");
	(void)snprintf(patch, sizeof(patch),
		       "{'process':{'user':{'username':'www:disk'},"
		       "'args':['sh','-c','%s']}}",
		       show);
	expect_out(patch, "33\n6\n6\n/home/www\n");
	(void)snprintf(patch, sizeof(patch),
		       "{'process':{'user':{'username':'1234:99'},"
		       "'args':['sh','-c','%s']}}",
		       show);
	expect_out(patch, "1234\n99\n99\n/\n");
	expect_out("{'process':{'user':{'uid':0,'gid':0,'umask':63}," SH("umask") "}}", "0077\n");
	expect_error("{'process':{'user':{'username':'nobody9'}}}", -EINVAL,
		     "unable to find user nobody9: no matching entries in passwd file");
	expect_error("{'process':{'user':{'username':'www:nogroup9'}}}", -EINVAL,
		     "unable to find group nogroup9: no matching entries in group file");
}

static void programs_that_cannot_run(void **state)
{
	expect_error("{'process':{'args':['nope']}}", -ENOENT,
		     "exec: \"nope\": executable file not found in $PATH");
	expect_error("{'process':{'args':['/bin/nope']}}", -ENOENT,
		     "exec: \"/bin/nope\": stat /bin/nope: no such file or directory");
	expect_error("{'process':{'args':['/etc/noexec']}}", -EACCES,
		     "exec: \"/etc/noexec\": permission denied");
	expect_error("{'process':{'args':['/etc']}}", -EISDIR, "exec: \"/etc\": is a directory");
	expect_error("{'process':{'args':['/etc/garbage']}}", -ENOEXEC,
		     "exec: \"/etc/garbage\": exec format error");
}

static void capabilities(void **state)
{
	char patch[1024];

	(void)snprintf(patch, sizeof(patch),
		       "{'process':{'capabilities':{'bounding':['CAP_KILL'],"
		       "'effective':['CAP_KILL'],'permitted':['CAP_KILL','CAP_CHOWN'],"
		       "'inheritable':['CAP_KILL'],'ambient':['CAP_KILL','CAP_UNKNOWN']},"
		       "'user':{'uid':9,'gid':9},'args':['sh','-c','%s']}}",
		       "grep ^Cap /proc/self/status");
	expect_out(patch, "CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\n"
			  "CapEff:\t0000000000000020\nCapBnd:\t0000000000000020\n"
			  "CapAmb:\t0000000000000020\n");
	expect_out("{'process':{'capabilities':{'bounding':[],'effective':[],'permitted':[]},"
		   "'args':['grep','^CapEff','/proc/self/status']}}",
		   "CapEff:\t0000000000000000\n");
}

static void process_attributes(void **state)
{
	expect_out("{'process':{'noNewPrivileges':true,'oomScoreAdj':123,'rlimits':["
		   "{'type':'RLIMIT_NOFILE','soft':100,'hard':200}]," SH(
			   "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; "
			   "grep NoNewPrivs /proc/self/status") "}}",
		   "100\n200\n123\nNoNewPrivs:\t1\n");
	expect_out("{'process':{'ioPriority':{'class':'IOPRIO_CLASS_IDLE','priority':0},"
		   "'scheduler':{'policy':'SCHED_BATCH','nice':5},"
		   "'args':['awk','{print $41, $19}','/proc/self/stat']}}",
		   "3 5\n");
	expect_out("{'linux':{'personality':{'domain':'LINUX32'}},"
		   "'process':{'args':['uname','-m']}}",
		   "i686\n");
	expect_out("{'process':{'execCPUAffinity':{'initial':'0','final':'0'},"
		   "'args':['grep','Cpus_allowed_list','/proc/self/status']}}",
		   "Cpus_allowed_list:\t0\n");
	expect_error("{'process':{'scheduler':{'policy':'SCHED_NONE'}}}", -EINVAL,
		     "process.scheduler.policy");
}

static void default_devices(void **state)
{
	expect_out("{'process':{" SH("for d in null zero full random urandom tty; do test -c "
				     "/dev/$d || echo no $d; done;"
				     "stat -c %a:%t:%T /dev/null; readlink /dev/fd; readlink "
				     "/dev/stdin; readlink /dev/ptmx;"
				     "echo x >/dev/null && head -c 1 /dev/zero | wc -c") "}}",
		   "666:1:3\n/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n1\n");
	expect_out(
		"{'linux':{'devices':[{'path':'/dev/sub/mine','type':'c','major':1,'minor':5,"
		"'fileMode':416,'uid':3,'gid':4},{'path':'/dev/pipe','type':'p'}]},'process':{" SH(
			"stat -c %a:%u:%g:%t:%T /dev/sub/mine; test -p /dev/pipe && echo p") "}}",
		"640:3:4:1:5\np\n");
}

static void mounts_and_options(void **state)
{
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/a/b',"
		   "'type':'tmpfs','source':'t','options':['nosuid','noexec','ro','size=64k',"
		   "'mode=700','noatime']}],'process':{" SH(
			   "grep /a/b /proc/mounts | cut -d\\\" \\\" -f2-3; "
			   "touch /a/b/x 2>&1; stat -c %a /a/b; grep -o noatime /proc/mounts") "}}",
		   "/a/b tmpfs\ntouch: /a/b/x: Read-only file system\n700\nnoatime\n");
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/etc/passwd',"
		   "'type':'bind','source':'/mnt/rootfs/etc/group','options':['bind','ro']},"
		   "{'destination':'/b','source':'/mnt/rootfs/bin','options':['rbind','rro',"
		   "'rprivate']}],'process':{" SH(
			   "head -1 /etc/passwd; touch /b/x 2>&1; ls /b/busybox") "}}",
		   "root:x:0:\ntouch: /b/x: Read-only file system\n/b/busybox\n");
	expect_error("{'mounts':[{'destination':'/x','type':'nofs'}]}", -ENODEV,
		     "mounts[0] (nofs on /x): unknown file system type");
	expect_error("{'mounts':[{'destination':'/x','type':'tmpfs','options':['size=lots']}]}",
		     -EINVAL, "mounts[0] (tmpfs on /x)");
	expect_error("{'mounts':[{'destination':'/x','type':'bind','source':'/no/such',"
		     "'options':['bind']}]}",
		     -ENOENT, "bind mount of \"/no/such\"");
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/etc',"
		   "'type':'tmpfs','options':['tmpcopyup']}],'process':{" SH(
			   "head -1 /etc/group; touch /etc/new && ls /etc/new") "}}",
		   "root:x:0:\n/etc/new\n");
}

static void id_mapped_mounts(void **state)
{
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/m',"
		   "'type':'bind','source':'/mnt/rootfs/etc','options':['rbind','ridmap'],"
		   "'uidMappings':[{'containerID':0,'hostID':500,'size':9}],"
		   "'gidMappings':[{'containerID':0,'hostID':600,'size':9}]}],"
		   "'process':{'args':['stat','-c','%u:%g','/m/passwd']}}",
		   "500:600\n");
	expect_error("{'mounts':[{'destination':'/m','source':'/mnt/rootfs/etc','options':["
		     "'bind','idmap']}]}",
		     -EINVAL, "mounts[0] (bind on /m): idmap without mappings");
}

static void propagation(void **state)
{
	expect_out("{'linux':{'rootfsPropagation':'rshared'},'process':{" SH(
			   "cut -d\\\" \\\" -f5-7 /proc/self/mountinfo | grep -c \\\"^/ "
			   ".*shared:\\\"") "}}",
		   "1\n");
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/t',"
		   "'type':'tmpfs','options':['shared']}],'process':{" SH(
			   "grep \\\" /t \\\" /proc/self/mountinfo | grep -c shared:") "}}",
		   "1\n");
	expect_error("{'linux':{'rootfsPropagation':'often'}}", -EINVAL, "linux.rootfsPropagation");
}

static void hidden_paths(void **state)
{
	expect_out("{'linux':{'maskedPaths':['/etc/group','/home','/no/such'],"
		   "'readonlyPaths':['/tmp','/none']},'process':{" SH(
			   "wc -c </etc/group; touch /home/x 2>&1; touch /tmp/x 2>&1; true") "}}",
		   "0\ntouch: /home/x: Read-only file system\n"
		   "touch: /tmp/x: Read-only file system\n");
	expect_out("{'root':{'readonly':true},'process':{" SH("touch /x 2>&1; true") "}}",
		   "touch: /x: Read-only file system\n");
}

static void read_only_image(void **state)
{
	/* A root that cannot be written at all still takes mount points and a working directory. */
	assert_int_equal(mount("/mnt/rootfs", "/mnt/rootfs", NULL, MS_BIND, NULL), 0);
	assert_int_equal(mount(NULL, "/mnt/rootfs", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL),
			 0);
	harness_container(
		"{'root':{'readonly':true},'process':{'cwd':'/fresh/dir','user':{"
		"'uid':5,'gid':6}," SH(
			"stat -c %u:%g .; stat -c %a /; touch /x 2>&1; touch x 2>&1; "
			"ls -d /data") "},'mounts':[{'destination':'/proc','type':'proc'},{"
				       "'destination':'/data','type':'tmpfs'}]}",
		0, &r);
	assert_int_equal(umount("/mnt/rootfs"), 0);
	assert_string_equal(r.error.msg, "");
	assert_string_equal(r.out, "5:6\n755\ntouch: /x: Read-only file system\n"
				   "touch: x: Read-only file system\n/data\n");
}

static void hostile_paths(void **state)
{
	/* The links lead out of the root; what is mounted through them must stay inside. */
	expect_out("{'process':{" SH(
			   "mkdir /mnt; ln -s / /evil; "
			   "ln -s ../../../../mnt /evil2; ln -s /proc/1/root/mnt /evil3") "}}",
		   "");
	expect_out("{'mounts':[{'destination':'/proc','type':'proc'},{'destination':"
		   "'/evil2/escape','type':'tmpfs'},{'destination':'/evil2/in',"
		   "'type':'tmpfs'}],'process':{" SH(
			   "grep -c \\\" /mnt/\\\" /proc/mounts; ls -d /mnt/escape /mnt/in; rm "
			   "/evil /evil2 /evil3") "}}",
		   "2\n/mnt/escape\n/mnt/in\n");
	assert_int_equal(access("/mnt/escape", F_OK), -1);
	assert_int_equal(access("/mnt/in", F_OK), -1);
}

static void sysctls(void **state)
{
	expect_out(
		"{'linux':{'sysctl':{'kernel.shmmax':'12345','net.ipv4.ip_forward':'1'}},"
		"'process':{" SH("cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward") "}}",
		"12345\n1\n");
	expect_error("{'linux':{'sysctl':{'kernel.nope':'1'}}}", -ENOENT,
		     "linux.sysctl: kernel.nope");
}

static void time_namespace(void **state)
{
	expect_out("{'linux':{'namespaces':[{'type':'mount'},{'type':'pid'},{'type':'time'}],"
		   "'timeOffsets':{'boottime':{'secs':100000000},'monotonic':{'secs':7}}},"
		   "'process':{" SH(
			   "test $(cut -d. -f1 /proc/uptime) -gt 99999999 && echo ok; "
			   "tr -s \\\" \\\" </proc/self/timens_offsets | cut -d\\\" \\\" -f2") "}}",
		   "ok\n7\n100000000\n");
}

static void user_namespace(void **state)
{
	expect_out("{'linux':{'namespaces':[{'type':'mount'},{'type':'pid'},{'type':'user'},"
		   "{'type':'ipc'},{'type':'uts'},{'type':'network'},{'type':'cgroup'}],"
		   "'uidMappings':[{'containerID':0,'hostID':100000,'size':1000}],"
		   "'gidMappings':[{'containerID':0,'hostID':200000,'size':1000}],"
		   "'maskedPaths':[],'readonlyPaths':[]},"
		   "'hostname':'u','process':{" SH("id -u; tr -s \\\" \\\" </proc/self/uid_map; "
						   "hostname; echo x >/dev/null && echo null") "}}",
		   "0\n 0 100000 1000\nu\nnull\n");
}

static void user_namespace_in_a_pod(void **state)
{
	struct error err = { 0 };

	assert_int_equal(container_sandbox_share(&harness_sandbox, "podname", &err), 0);
	harness_container("{'linux':{'namespaces':[{'type':'mount'},{'type':'pid'},{'type':'user'},"
			  "{'type':'ipc'},{'type':'uts'},{'type':'network'},{'type':'cgroup'}],"
			  "'uidMappings':[{'containerID':0,'hostID':100000,'size':1000}],"
			  "'gidMappings':[{'containerID':0,'hostID':200000,'size':1000}]},"
			  "'hostname':'inuser','process':{" SH("hostname; ls -d /sys/kernel; "
							       "grep -c mqueue /proc/mounts") "}}",
			  CONTAINER_SHARE_NET | CONTAINER_SHARE_IPC | CONTAINER_SHARE_UTS, &r);
	assert_string_equal(r.error.msg, "");
	assert_string_equal(r.out, "inuser\n/sys/kernel\n1\n");
}

static void seccomp_filters(void **state)
{
	expect_out("{'linux':{'seccomp':{'defaultAction':'SCMP_ACT_ALLOW','architectures':"
		   "['SCMP_ARCH_X86_64'],'syscalls':[{'names':['mkdir','mkdirat','nonsense'],"
		   "'action':'SCMP_ACT_ERRNO','errnoRet':38}]}},'process':{" SH(
			   "mkdir /x 2>&1; grep ^Seccomp: /proc/self/status") "}}",
		   "mkdir: can't create directory '/x': Function not implemented\n"
		   "Seccomp:\t2\n");
	expect_error("{'linux':{'seccomp':{'defaultAction':'SCMP_ACT_SING'}}}", -EINVAL,
		     "linux.seccomp.defaultAction");
}

static void hooks_run(void **state)
{
	expect_out("{'annotations':{'k':'v'},'hooks':{"
		   "'prestart':[{'path':'/bin/busybox','args':['sh','-c',"
		   "'cat >/mnt/rootfs/tmp/prestart']}],"
		   "'createContainer':[{'path':'/bin/busybox','args':['touch',"
		   "'/mnt/rootfs/tmp/cc']}],"
		   "'startContainer':[{'path':'/bin/sh','args':['sh','-c','echo >/tmp/sc']}],"
		   "'poststop':[{'path':'/bin/busybox','args':['touch','/mnt/rootfs/tmp/ps']}]},"
		   "'process':{" SH("cut -d, -f2,3,6 /tmp/prestart; ls /tmp/cc /tmp/sc") "}}",
		   "\"id\":\"test\",\"status\":\"creating\",\"annotations\":{\"k\":\"v\"}}\n"
		   "/tmp/cc\n/tmp/sc\n");
	assert_int_equal(access("/mnt/rootfs/tmp/ps", F_OK), 0);
	expect_error("{'hooks':{'createRuntime':[{'path':'/bin/busybox','args':['sh','-c',"
		     "'echo broken; exit 3']}]}}",
		     -EIO, "hooks.createRuntime[0] (/bin/busybox): exit status 3: broken");
	expect_error("{'hooks':{'prestart':[{'path':'/bin/busybox','args':['sleep','60'],"
		     "'timeout':1}]}}",
		     -ETIMEDOUT, "no end within its time limit");
}

static void terminals(void **state)
{
	expect_out("{'process':{'terminal':true,'consoleSize':{'height':31,'width':77}," SH(
			   "tty; stty size; test -c /dev/console && echo console; "
			   "echo hi >/dev/tty") "}}",
		   "/dev/pts/0\r\n31 77\r\nconsole\r\nhi\r\n");
}

static void exec_joins(void **state)
{
	struct error err = { 0 };
	struct container *c = harness_start("c1",
					    "{'hostname':'h1','process':{"
					    "'args':['sleep','100']}}",
					    0, &err);

	if (!c)
		fail_msg("%s", err.msg);
	harness_exec(c,
		     "{" SH("hostname; cat /proc/1/cmdline | tr \\\"\\\\\\\\0\\\" . ; "
			    "grep ^0: /proc/self/cgroup; exit 5") "}",
		     &r);
	assert_string_equal(r.error.msg, "");
	assert_string_equal(r.out, "h1\nsleep.100.0::/\n");
	assert_int_equal(r.code, 5);
	harness_exec(c, "{'args':['nope']}", &r);
	assert_int_equal(r.create, -ENOENT);
	assert_string_equal(r.error.msg, "exec: \"nope\": executable file not found in $PATH");
	harness_exec(c, "{'args':['/etc/noexec']}", &r);
	assert_int_equal(r.create, -EACCES);
	harness_exec(c, "{'args':['tty'],'terminal':true}", &r);
	assert_string_equal(r.out, "/dev/pts/0\r\n");
	harness_exec(c, "{'args':['id','-u'],'user':{'username':'www'}}", &r);
	assert_string_equal(r.out, "33\n");
	harness_end(c);
	assert_null(container_find(&harness_sandbox, "c1"));
}

static void signals_and_pause(void **state)
{
	struct error err = { 0 };
	struct container *c = harness_start(
		"c1",
		"{'process':{" SH("trap \\\"exit 9\\\" TERM; while true; do sleep 0.05; done") "}}",
		0, &err);
	pid_t *pids = NULL;
	size_t n;

	if (!c)
		fail_msg("%s", err.msg);
	assert_int_equal(container_state(c), CONTAINER_RUNNING);
	assert_int_equal(container_pause(c, &err), 0);
	assert_int_equal(container_state(c), CONTAINER_PAUSED);
	assert_int_equal(container_pause(c, &err), -EBUSY);
	harness_exec(c, "{'args':['true']}", &r);
	assert_int_equal(r.create, -EBUSY);
	assert_int_equal(container_resume(c, &err), 0);
	assert_int_equal(container_pids(c, &pids, &n, &err), 0);
	assert_true(n >= 1);
	free(pids);
	assert_int_equal(container_delete(c, false, &err), -EBUSY);
	usleep(200000);
	assert_int_equal(container_signal(c, "", 15, &err), 0);
	assert_int_equal(harness_wait(c, ""), 9);
	assert_int_equal(container_signal(c, "", 15, &err), -ESRCH);
	assert_int_equal(container_delete(c, false, &err), 0);

	c = harness_start("c2", "{'process':{" SH("sleep 100 & sleep 100") "}}", 0, &err);
	assert_non_null(c);
	assert_int_equal(container_signal_all(c, 9, &err), 0);
	assert_int_equal(harness_wait(c, ""), 137);
	harness_end(c);
}

static void shared_namespaces(void **state)
{
	struct error err = { 0 };
	unsigned share = CONTAINER_SHARE_IPC | CONTAINER_SHARE_UTS | CONTAINER_SHARE_PID |
			 CONTAINER_SHARE_NET;
	struct container *c;

	assert_int_equal(container_sandbox_share(&harness_sandbox, "podname", &err), 0);
	c = harness_start("pause", "{'process':{'args':['sleep','99']}}", share, &err);
	if (!c)
		fail_msg("%s", err.msg);
	harness_container("{'process':{" SH("hostname; head -c 5 /proc/1/cmdline; echo") "}}",
			  share, &r);
	assert_string_equal(r.error.msg, "");
	assert_string_equal(r.out, "podname\nsleep\n");
	assert_int_equal(container_sandbox_share(&harness_sandbox, "renamed", &err), 0);
	harness_container("{'process':{'args':['hostname']}}", share, &r);
	assert_string_equal(r.out, "renamed\n");
	/* What a container leaves behind in the shared pid namespace ends with its init. */
	harness_container("{'process':{" SH("sleep 77 </dev/null >/dev/null 2>&1 & true") "}}",
			  share, &r);
	assert_int_equal(r.code, 0);
	harness_exec(c, "{'args':['ps']}", &r);
	assert_null(strstr(r.out, "sleep 77"));
	harness_end(c);
}

static void joins_by_path(void **state)
{
	struct error err = { 0 };
	struct container *c = harness_start("a",
					    "{'hostname':'first','process':{"
					    "'args':['sleep','99']}}",
					    0, &err);
	char patch[512];

	assert_non_null(c);
	(void)snprintf(patch, sizeof(patch),
		       "{'linux':{'namespaces':[{'type':'mount'},"
		       "{'type':'uts','path':'/proc/%d/ns/uts'},{'type':'pid','path':"
		       "'/proc/%d/ns/pid'},{'type':'ipc','path':'/proc/%d/ns/ipc'},"
		       "{'type':'network','path':'/proc/%d/ns/net'},"
		       "{'type':'cgroup','path':'/proc/%d/ns/cgroup'}]},"
		       "'process':{" SH("hostname; head -c 5 /proc/1/cmdline; echo") "}}",
		       (int)container_pid(c, ""), (int)container_pid(c, ""),
		       (int)container_pid(c, ""), (int)container_pid(c, ""),
		       (int)container_pid(c, ""));
	expect_out(patch, "first\nsleep\n");
	harness_end(c);
	expect_error("{'linux':{'namespaces':[{'type':'uts','path':'/no/ns'}]}}", -ENOENT,
		     "linux.namespaces: uts \"/no/ns\"");
}

static void device_rules(void **state)
{
	expect_out("{'linux':{'resources':{'devices':[{'allow':false,'access':'rwm'},"
		   "{'allow':false,'type':'c','major':1,'minor':5,'access':'r'},"
		   "{'allow':true,'type':'c','major':1,'minor':11,'access':'w'}]}},"
		   "'process':{" SH(
			   "mknod /tmp/k c 1 11; mknod /tmp/m c 1 1; cat /tmp/m 2>&1; "
			   "head -c 1 /tmp/k 2>&1; head -c 1 /dev/zero 2>&1; echo x >/dev/zero && "
			   "head -c 1 /dev/urandom | wc -c; rm /tmp/k /tmp/m") "}}",
		   "cat: can't open '/tmp/m': Operation not permitted\n"
		   "head: /tmp/k: Operation not permitted\n"
		   "head: /dev/zero: Operation not permitted\n1\n");
	expect_error("{'linux':{'resources':{'devices':[{'allow':true,'type':'x'}]}}}", -EINVAL,
		     "linux.resources: devices[0].type");
}

/* The files of the controllers exist only where cgroup v2 has the machine to itself. */
static void need(const char *controller)
{
	char path[256], text[512] = "";
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/cgroup.controllers", harness_sandbox.cgroup_root);
	f = fopen(path, "re");
	if (f) {
		if (!fgets(text, sizeof(text), f))
			text[0] = 0;
		(void)fclose(f);
	}
	if (!strstr(text, controller))
		skip();
}

#define SHOW(files) "'process':{'cwd':'/sys/fs/cgroup'," SH("cat " files) "}}"

static void memory_limits(void **state)
{
	need("memory");
	expect_out("{'linux':{'resources':{'memory':{'limit':67108864,'reservation':33554432,"
		   "'swap':100663296,'kernel':1,'swappiness':10}}}," SHOW(
			   "memory.max memory.low memory.swap.max"),
		   "67108864\n33554432\n33554432\n");
	expect_out("{'linux':{'resources':{'memory':{'limit':-1,'swap':-1}}}," SHOW(
			   "memory.max memory.swap.max"),
		   "max\nmax\n");
	expect_error("{'linux':{'resources':{'memory':{'limit':67108864,'swap':1048576}}}}",
		     -EINVAL, "linux.resources: memory.swap");
	expect_error("{'linux':{'resources':{'memory':{'swap':1048576}}}}", -EINVAL,
		     "memory.swap: set without memory.limit");
}

static void cpu_limits(void **state)
{
	need("cpu");
	expect_out("{'linux':{'resources':{'cpu':{'shares':2048,'quota':50000,'period':200000,"
		   "'burst':1000}}}," SHOW("cpu.weight cpu.max cpu.max.burst"),
		   "79\n50000 200000\n1000\n");
	expect_out("{'linux':{'resources':{'cpu':{'idle':1}}}," SHOW("cpu.idle"), "1\n");
	need("cpuset");
	expect_out("{'linux':{'resources':{'cpu':{'cpus':'0','mems':'0'}}}," SHOW(
			   "cpuset.cpus cpuset.mems"),
		   "0\n0\n");
	expect_error("{'linux':{'resources':{'cpu':{'cpus':'abc'}}}}", -EINVAL, "cpu.cpus");
}

static void other_limits(void **state)
{
	need("pids");
	expect_out("{'linux':{'resources':{'pids':{'limit':20}}}," SHOW("pids.max"), "20\n");
	expect_out("{'linux':{'resources':{'pids':{'limit':-1}}}," SHOW("pids.max"), "max\n");
	need("memory");
	expect_out("{'linux':{'resources':{'unified':{'memory.high':'50331648',"
		   "'memory.oom.group':'1'}}}," SHOW("memory.high memory.oom.group"),
		   "50331648\n1\n");
	expect_error("{'linux':{'resources':{'unified':{'memory.nope':'1'}}}}", -EOPNOTSUPP,
		     "unified[memory.nope]: the guest kernel has no memory.nope");
	need("hugetlb");
	expect_out("{'linux':{'resources':{'hugepageLimits':[{'pageSize':'2MB','limit':4194304}"
		   "]}}," SHOW("hugetlb.2MB.max hugetlb.2MB.rsvd.max"),
		   "4194304\n4194304\n");
}

static void io_limits(void **state)
{
	char patch[1024], want[256];
	unsigned major = 0, minor = 0;
	FILE *f;

	need("io");
	f = fopen("/sys/block/vda/dev", "re");
	if (!f || fscanf(f, "%u:%u", &major, &minor) != 2)
		major = 0;
	if (f)
		(void)fclose(f);
	if (!major)
		skip();
	(void)snprintf(
		patch, sizeof(patch),
		"{'linux':{'resources':{'blockIO':{"
		"'throttleReadBpsDevice':[{'major':%u,'minor':%u,'rate':1048576}],"
		"'throttleWriteBpsDevice':[{'major':%u,'minor':%u,'rate':2097152}],"
		"'throttleReadIOPSDevice':[{'major':%u,'minor':%u,'rate':100}],"
		"'throttleWriteIOPSDevice':[{'major':%u,'minor':%u,'rate':200}]}}}," SHOW("io.max"),
		major, minor, major, minor, major, minor, major, minor);
	(void)snprintf(want, sizeof(want), "%u:%u rbps=1048576 wbps=2097152 riops=100 wiops=200\n",
		       major, minor);
	expect_out(patch, want);
	/* 500 of 1000 for BFQ; where the kernel has iocost instead, 4950 of 10000. */
	expect_out("{'linux':{'resources':{'blockIO':{'weight':500}}}," SHOW(
			   "io.bfq.weight io.weight 2>/dev/null | head -1 | sed s/4950/500/"),
		   "default 500\n");
}

static void updates(void **state)
{
	Grpc__LinuxResources res = GRPC__LINUX_RESOURCES__INIT;
	Grpc__LinuxMemory mem = GRPC__LINUX_MEMORY__INIT;
	Grpc__LinuxCPU cpu = GRPC__LINUX_CPU__INIT;
	Grpc__LinuxPids pids = GRPC__LINUX_PIDS__INIT;
	struct error err = { 0 };
	struct container *c;

	need("memory");
	c = harness_start("c1",
			  "{'process':{'args':['sleep','100']},'linux':{'resources':{"
			  "'memory':{'limit':67108864},'cpu':{'quota':10000,'period':50000}}}}",
			  0, &err);
	if (!c)
		fail_msg("%s", err.msg);
	res.memory = &mem;
	res.cpu = &cpu;
	res.pids = &pids;
	mem.limit = 134217728;
	cpu.quota = 20000;
	pids.limit = 33;
	assert_int_equal(container_update(c, &res, &err), 0);
	harness_exec(c, "{'cwd':'/sys/fs/cgroup'," SH("cat memory.max cpu.max pids.max") "}", &r);
	assert_string_equal(r.out, "134217728\n20000 50000\n33\n");
	mem.limit = 4096;
	mem.checkbeforeupdate = true;
	assert_int_equal(container_update(c, &res, &err), -EBUSY);
	assert_non_null(strstr(err.msg, "resources: memory.limit: 4096 is below what is in use"));
	harness_end(c);
}

static void statistics(void **state)
{
	struct container_stats st;
	struct error err = { 0 };
	struct container *c;

	need("memory");
	need("cpu");
	c = harness_start(
		"c1",
		"{'process':{" SH(
			"i=0; while test $i -lt 20000; do i=$((i+1)); "
			"done; sleep 100") "},'linux':{'resources':{'memory':{'limit':67108864},"
					   "'pids':{'limit':9}}}}",
		0, &err);
	if (!c)
		fail_msg("%s", err.msg);
	usleep(500000);
	assert_int_equal(container_stats(c, &st, &err), 0);
	assert_true(st.cpu.usage_ns > 1000000 && st.cpu.usage_ns >= st.cpu.user_ns);
	assert_true(st.memory.usage > 4096 && st.memory.usage < 67108864);
	assert_true(st.memory.peak >= st.memory.usage || st.memory.peak == 0);
	assert_true(st.memory.limit == 67108864);
	assert_true(st.pids.current >= 1 && st.pids.limit == 9);
	assert_true(st.memory.n_stat > 10);
	assert_true(container_stats_memory(&st, "anon") > 0);
	assert_true(container_stats_memory(&st, "no such") == 0);
	container_stats_fini(&st);
	harness_end(c);
}

static void out_of_memory(void **state)
{
	struct error err = { 0 };
	struct container *c;

	need("memory");
	c = harness_start("c1",
			  "{'process':{'args':['dd','if=/dev/zero','of=/dev/null',"
			  "'bs=64M','count=1']},'linux':{'resources':{'memory':{"
			  "'limit':16777216,'swap':16777216}}}}",
			  0, &err);
	if (!c)
		fail_msg("%s", err.msg);
	assert_true(container_oom_fd(c) >= 0);
	assert_int_equal(harness_wait(c, ""), 137);
	assert_int_equal(container_oom_take(c), 1);
	assert_int_equal(container_oom_take(c), 0);
	harness_end(c);
}

#define NESTED(controllers)                                                                        \
	"{'mounts':[{'destination':'/proc','type':'proc'},{'destination':'/sys/fs/cgroup',"        \
	"'type':'cgroup','options':['rw']}],'process':{" SH(                                       \
		"mkdir /sys/fs/cgroup/init && echo 1 >/sys/fs/cgroup/init/cgroup.procs && "        \
		"for x in " controllers "; do "                                                    \
		"echo +$x >/sys/fs/cgroup/cgroup.subtree_control; done; sleep 100") "}}"

static void nested_cgroups(void **state)
{
	struct error err = { 0 };
	struct container *c;

	/*
	 * A container that manages cgroups of its own, as systemd does. Outside of a guest the
	 * agent's cgroups are not the hierarchy's root, which an exec beside controllers relies on:
	 * none is handed down there.
	 */
	bool guest = strcmp(harness_sandbox.cgroup_root, "/sys/fs/cgroup") == 0;

	c = harness_start("c1",
			  guest ? NESTED("$(cat /sys/fs/cgroup/cgroup.controllers)") : NESTED(""),
			  0, &err);
	pid_t *pids = NULL;
	size_t n = 0;

	if (!c)
		fail_msg("%s", err.msg);
	usleep(500000);
	harness_exec(c, "{'args':['grep','^0:','/proc/self/cgroup']}", &r);
	assert_string_equal(r.error.msg, "");
	assert_int_equal(r.code, 0);
	assert_int_equal(container_pids(c, &pids, &n, &err), 0);
	assert_true(n >= 1);
	free(pids);
	harness_end(c);
	assert_null(container_find(&harness_sandbox, "c1"));
}

static void bad_specs(void **state)
{
	expect_error("{'root':{'path':'/no/root'}}", -ENOENT, "root.path: \"/no/root\"");
	expect_error("{'linux':{'cgroupsPath':'/../up'}}", -EINVAL, "linux.cgroupsPath");
	expect_error("{'linux':{'resources':{'unified':{'cgroup.procs':'1'}}}}", -EINVAL,
		     "linux.resources: unified");
	expect_error("{'process':{'rlimits':[{'type':'RLIMIT_FOO','soft':1,'hard':1}]}}", -EINVAL,
		     "process.rlimits[0].type");
	expect_error("{'process':{'args':['']}}", -EINVAL, "process.args");
	assert_null(container_next(&harness_sandbox, NULL));
}

static const struct CMUnitTest tests[] = {
	cmocka_unit_test(runs_and_exits),
	cmocka_unit_test(namespaces_are_new),
	cmocka_unit_test(environment_and_cwd),
	cmocka_unit_test(users_and_groups),
	cmocka_unit_test(programs_that_cannot_run),
	cmocka_unit_test(capabilities),
	cmocka_unit_test(process_attributes),
	cmocka_unit_test(default_devices),
	cmocka_unit_test(mounts_and_options),
	cmocka_unit_test(id_mapped_mounts),
	cmocka_unit_test(propagation),
	cmocka_unit_test(hidden_paths),
	cmocka_unit_test(read_only_image),
	cmocka_unit_test(hostile_paths),
	cmocka_unit_test(sysctls),
	cmocka_unit_test(time_namespace),
	cmocka_unit_test(user_namespace),
	cmocka_unit_test(user_namespace_in_a_pod),
	cmocka_unit_test(seccomp_filters),
	cmocka_unit_test(hooks_run),
	cmocka_unit_test(terminals),
	cmocka_unit_test(exec_joins),
	cmocka_unit_test(signals_and_pause),
	cmocka_unit_test(shared_namespaces),
	cmocka_unit_test(joins_by_path),
	cmocka_unit_test(device_rules),
	cmocka_unit_test(memory_limits),
	cmocka_unit_test(cpu_limits),
	cmocka_unit_test(other_limits),
	cmocka_unit_test(io_limits),
	cmocka_unit_test(updates),
	cmocka_unit_test(statistics),
	cmocka_unit_test(out_of_memory),
	cmocka_unit_test(nested_cgroups),
	cmocka_unit_test(bad_specs),
};

static int run(void)
{
	if (getenv("FILTER"))
		cmocka_set_test_filter(getenv("FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
	return harness_run(run);
}
