/*
 * vmm - starts, watches and ends one virtual machine.
 *
 * Client side of the program caisson-vmm, which holds the machine in a jail of its own: a VM
 * outlives the process that started it and can be attached to again. May be used by the sandbox
 * and by tools; nothing here knows about containers or about the agent.
 *
 * Everything is driven by the caller's libuv loop, by one thread. Functions that take a callback
 * return 0 if the request was sent, in which case the callback runs exactly once (also when the
 * VM dies first, then with -ECONNRESET), never from within the call itself.
 *
 * Files of a VM live in one directory, @dir, which the caller makes (mode 0700) and which nobody
 * else writes to:
 *   vmm.state       what vmm_reclaim() must free; written before it is acquired
 *   vmm.sock        ttRPC of caisson-vmm (proto/vmm.proto)
 *   vmm.fds         datagrams with the descriptors that belong to calls
 *   vsock.sock      hybrid vsock: "CONNECT <port>\n" -> "OK <host port>\n" (mode 0600)
 *   vsock.sock_<P>  the caller's listening socket for connections of the guest to (2, <P>); it
 *                   must exist before the guest connects
 *   jail/           mount point of the jail's root, empty as seen from outside
 * A path longer than a Unix socket address allows is no obstacle here (sockets are reached
 * through the directory's descriptor), see vmm_sock_connect().
 *
 * The guest's CID is 3. The guest powers off by reboot(RB_AUTOBOOT): machines without ACPI know
 * no other way, and QEMU runs with -no-reboot.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "base/error.h"

#define VMM_MAX_DISKS  16u          /* disks[]: those with a device of their own */
#define VMM_SHELF_SERIAL "caisson-shelf"
#define VMM_MAX_SHARES 4u
#define VMM_MAX_NICS   8u
#define VMM_MAX_QUEUES 8u          /* of one NIC */
#define VMM_MAX_PCI    8u
#define VMM_PCI_SLOT   0x17u /* of the first of these, on the root bus; the others follow */
#define VMM_SERIAL_MAX 20u
#define VMM_TAG_MAX    36u
#define VMM_ID_MAX     128u
#define VMM_CONSOLE_RING (64u * 1024u)
#define VMM_MEMORY_BLOCK (UINT64_C(128) << 20) /* a running guest adds and gives up memory in these */
#define VMM_MAX_LAYERS 8u
#define VMM_MAX_SPARE  2u          /* pieces of memory beyond what a guest boots with */

#define VMM_GUEST_CID  3u

enum vmm_machine {
	VMM_MACHINE_AUTO = 0,       /* builtin, microvm or q35: the first that can hold the devices */
	VMM_MACHINE_MICROVM,        /* QEMU's */
	VMM_MACHINE_Q35,            /* QEMU's */
	VMM_MACHINE_BUILTIN,        /* the monitor of our own; needs KVM */
};

enum vmm_accel {
	VMM_ACCEL_AUTO = 0,         /* kvm if the probe passes, else tcg */
	VMM_ACCEL_KVM,
	VMM_ACCEL_TCG,
};

struct vmm_disk {
	const char *path;           /* absolute; regular file or block device */
	const char *serial;         /* 1..20 bytes, unique in the VM */
	bool read_only;
	/* Of no use after the VM's end: what the guest flushes need not be on stable storage. */
	bool ephemeral;
	bool direct;                /* past the host's page cache; vmm_disk_attach() only */
	uint64_t bytes_per_s, ops_per_s; /* limits, 0: none */
	unsigned part;              /* the place it must have, 0: any; vmm_disk_attach() only */
};

/* Memory of the guest, in bytes of its physical addresses. */
struct vmm_range {
	uint64_t start, size;
};

/* Where an attached disk is on the device with the serial VMM_SHELF_SERIAL, in bytes. */
struct vmm_place {
	unsigned part;              /* a number of its own, 1..255: the guest's partition */
	uint64_t start, size;
};

#define VMM_WINDOW_MAX 16384u

/* How long the guest relies on what it knows of a share: as enum fs_cache of fs/. */
enum vmm_share_cache {
	VMM_SHARE_CACHE_AUTO,
	VMM_SHARE_CACHE_NEVER,
	VMM_SHARE_CACHE_ALWAYS,
};

/* A directory given to the guest as a virtio-fs device. */
struct vmm_share {
	const char *tag;            /* 1..36 bytes, unique in the VM */
	const char *path;           /* absolute directory */
	bool read_only;
	enum vmm_share_cache cache;
	bool locks;                 /* file locks are taken on the host */
	bool file_handles;          /* inodes are kept by handle, which takes CAP_DAC_READ_SEARCH */
	/*
	 * Of guest addresses in which files are mapped (DAX); 0: none. Even, at most VMM_WINDOW_MAX. Only
	 * the built-in monitor has it, other machines do without.
	 */
	uint32_t window_mib;
};

enum vmm_nic_kind {
	VMM_NIC_TAP = 0,            /* tap or macvtap descriptors with IFF_VNET_HDR, one a queue */
	/*
	 * One connected stream socket that carries Ethernet frames, each after its length (4 bytes,
	 * big endian), as passt speaks it: make a socket pair, give passt the other end by --fd. Or a
	 * listening one: the first that connects is the other end, until then the wire is cut.
	 */
	VMM_NIC_STREAM,
};

/* A network card (virtio-net). The guest finds it by its hardware address. */
struct vmm_nic {
	enum vmm_nic_kind kind;
	uint8_t mac[6];             /* unicast, unique in the VM */
	uint32_t mtu;               /* the guest's, also its upper bound; 0: not told to the guest */
	const int *fds;             /* stay the caller's: vmm_spawn() duplicates them */
	size_t n_fds;               /* 1..VMM_MAX_QUEUES; STREAM: 1 */
};

/* What a machine had changed of its memory, and the list of those pages: two files. */
struct vmm_layer {
	int ram_fd, pages_fd;
};

/* User ids that VMs may have, one each; as group ids, too. */
struct vmm_uids {
	uint32_t first, n;          /* 0: none; the VM's processes are root's */
	const char *claims;         /* absolute: the directory that tells who has which; made if missing */
};

/* All strings are copied by vmm_spawn(). Zero means the default everywhere. */
struct vmm_config {
	const char *id;             /* begins the cgroup's name, is the process's; [A-Za-z0-9_.-]+ */
	const char *dir;            /* absolute, exists */

	/*
	 * The cgroup (path from the hierarchy's root) to make the VM's own in, so that its limits
	 * hold for the VM. NULL, or where there is none: at the root.
	 */
	const char *cgroup_parent;

	struct vmm_uids uids;

	const char *kernel;         /* absolute path of an uncompressed PVH ELF kernel */
	const char *initrd;         /* absolute path or NULL */
	const char *root_image;     /* EROFS image on virtio-pmem as root (q35 only), or NULL */
	const char *cmdline_extra;  /* appended to the kernel command line, e.g. "agent.log=info" */

	bool baseline_cpu;          /* the guest sees x86-64-v2, and not all that the host has */
	uint32_t memory_mib;        /* default 256; at least 64 */
	uint32_t vcpus;             /* default 1 */
	uint32_t memory_max_mib;    /* what vmm_resize() can give it; default: no more than the above */
	uint32_t vcpus_max;
	/*
	 * Memory of the host's reserved huge pages (2 MiB; hugetlbfs), and memory that is the machine's
	 * from its start on instead of from when the guest touches it. No templates then; and with huge
	 * pages no memory that comes later.
	 */
	bool hugepages, prealloc;
	enum vmm_machine machine;
	enum vmm_accel accel;

	const struct vmm_disk *disks;
	size_t n_disks;
	bool shelf;                 /* the device that vmm_disk_attach() puts disks on */
	const struct vmm_share *shares;
	size_t n_shares;
	const struct vmm_nic *nics;
	size_t n_nics;
	/*
	 * Addresses ("0000:01:00.0") of PCI devices of the host that vfio-pci drives, and which the
	 * guest gets as they are. Takes q35; all of the guest's memory is the host's then.
	 */
	const char *const *pci;
	size_t n_pci;

	/*
	 * Where the guest's console goes besides the ring of the last VMM_CONSOLE_RING bytes: a
	 * descriptor that caisson-vmm inherits (file or pipe), or -1. Forwarding is limited in
	 * rate and drops what would block. vmm_config_init() sets -1; 0 is never "unset".
	 */
	int console_fd;
	int log_fd;                 /* stderr of caisson-vmm; -1: the caller's */

	int netns_fd;               /* network namespace to join, -1: a new empty one */

	/* See "templates" below. */
	bool will_save;             /* vmm_template_save() will be called */
	int template_ram_fd;        /* files of a template to start from, or -1 */
	int template_state_fd;
	int working_set_fd;         /* what vmm_working_set() wrote, or -1; only VMM_MACHINE_BUILTIN uses it */
	const struct vmm_layer *layers; /* over the template's memory, the first one first */
	size_t n_layers;            /* up to VMM_MAX_LAYERS; 0 but for VMM_MACHINE_BUILTIN */
	bool start_paused;          /* with a template: vmm_resume() lets it go on */
	const char *qemu;           /* path of the QEMU binary; NULL: found in the usual places */
	const char *program;        /* path of caisson-vmm; NULL: beside the caller's program */
	bool debug;                 /* kernel talks on the console, vmm logs at debug level */
};

/* Sets the defaults, and the descriptors to -1. */
void vmm_config_init(struct vmm_config *cfg);

enum vmm_exit {
	VMM_EXIT_GUEST = 0,         /* the guest powered off */
	VMM_EXIT_PANIC,             /* the guest's kernel panicked or never ran */
	VMM_EXIT_STOPPED,           /* vmm_shutdown() or vmm_kill() */
	VMM_EXIT_START,             /* the machine could not be started; text says why */
	VMM_EXIT_CRASH,             /* QEMU or a device back-end died */
	VMM_EXIT_LOST,              /* caisson-vmm itself died */
	VMM_EXIT_OOM,               /* the host's kernel killed one of them for want of memory */
};

const char *vmm_exit_name(enum vmm_exit reason);
const char *vmm_machine_name(enum vmm_machine machine);

struct vmm_info {
	enum vmm_machine machine;   /* never AUTO */
	enum vmm_accel accel;       /* never AUTO */
	pid_t vmm_pid;
	pid_t qemu_pid;             /* as seen from the caller's pid namespace; 0: there is none */
	uint32_t memory_mib, vcpus; /* that it started with */
	uint32_t vcpus_max;
	struct vmm_range spare[VMM_MAX_SPARE]; /* whole blocks that it can add, and lies fallow */
	size_t n_spare;
};

struct vmm;

struct vmm_events {
	/* The guest runs. Information only: the agent's hello is the sign of life to wait for. */
	void (*started)(struct vmm *vmm, const struct vmm_info *info, void *ctx);
	/*
	 * The machine and all its processes are gone. Exactly once after a successful
	 * vmm_spawn()/vmm_attach(), unless vmm_close() came first. @text is one or more lines for
	 * people (QEMU's last words, the last lines of the console), never NULL.
	 */
	void (*exited)(struct vmm *vmm, enum vmm_exit reason, const char *text, void *ctx);
};

/*
 * @err is NULL on success, else holds code and text; valid during the call. -ESHUTDOWN: the VM has ended,
 * and exited() will say why.
 */
typedef void (*vmm_done_fn)(struct vmm *vmm, const struct error *err, void *ctx);
/* @place is NULL on failure. */
typedef void (*vmm_disk_fn)(struct vmm *vmm, const struct error *err, const struct vmm_place *place,
			    void *ctx);
typedef void (*vmm_text_fn)(struct vmm *vmm, const struct error *err, const char *data, size_t len,
			    void *ctx);

/*
 * Starts caisson-vmm and, in it, the machine. Returns once the process exists (a few ms); failure
 * to start the machine comes as exited(VMM_EXIT_START). Checks the configuration first: -EINVAL
 * for values, -ENOENT etc. for files, naming them; nothing is left behind then.
 */
int vmm_spawn(uv_loop_t *loop, const struct vmm_config *cfg, const struct vmm_events *events,
	      void *ctx, struct vmm **ret_vmm, struct error *err) __attribute__((warn_unused_result));

/* Takes over the running VM of @dir. -ESRCH if there is none. */
int vmm_attach(uv_loop_t *loop, const char *dir, const struct vmm_events *events, void *ctx,
	       struct vmm **ret_vmm, struct error *err) __attribute__((warn_unused_result));

/* Is a request under way, or the machine about to end? */
bool vmm_busy(const struct vmm *vmm);
/*
 * For a caller that goes on as another program: the descriptor of the connection to caisson-vmm, which
 * does not leave with what it has to tell while this is open, or -1. Close it after vmm_attach().
 */
int vmm_connection(struct vmm *vmm);

/*
 * Lets go of the VM without ending it. Requests under way end with -ECONNRESET from within this
 * call; @cb (may be NULL) runs when the handles are closed.
 */
void vmm_close(struct vmm *vmm, void (*cb)(void *ctx), void *ctx);

pid_t vmm_pid(const struct vmm *vmm);
/* The guest has come up: from now on the pod's limit of processor time holds for it. */
void vmm_booted(struct vmm *vmm);

int vmm_pause(struct vmm *vmm, vmm_done_fn cb, void *ctx);
int vmm_resume(struct vmm *vmm, vmm_done_fn cb, void *ctx);
/* Ends QEMU at once and in order (buffers of the back-ends are flushed); exited() follows. */
int vmm_shutdown(struct vmm *vmm, vmm_done_fn cb, void *ctx);
/* SIGKILL to everything of this VM; exited() follows. Cannot fail, may be repeated. */
void vmm_kill(struct vmm *vmm);

/*
 * The size of a running machine. It can grow to what was said at its start: processors that the guest
 * boots without and memory that it does not know are there, unused, and cost next to nothing. The
 * caller has the guest switch them on and off (see vmm_info); this call does the host's part. Before
 * the guest grows it is granted what it will have. After it has shrunk the rest is taken back: it gets
 * no more processor time than @vcpus use, where the VM's cgroup can limit that, and the memory of the
 * @n_unused ranges, whole blocks of the spare memory that the guest has given up, is the host's again.
 * -EINVAL: more than the machine's maximum, or not spare memory.
 */
struct vmm_size {
	uint32_t vcpus;
	uint32_t memory_mib;
	const struct vmm_range *unused;
	size_t n_unused;
};
int vmm_resize(struct vmm *vmm, const struct vmm_size *size, vmm_done_fn cb, void *ctx);

/*
 * Puts a disk on the shelf, where the guest can use it from when @cb runs: it is told the place and
 * makes a partition there. Nothing is announced, so there is nothing to wait for.
 */
int vmm_disk_attach(struct vmm *vmm, const struct vmm_disk *disk, vmm_disk_fn cb, void *ctx);
/*
 * Looks again how large the file or device of @serial is, and tells its place. What it has grown by
 * can be used from then on; the guest has to be told.
 */
int vmm_disk_measure(struct vmm *vmm, const char *serial, vmm_disk_fn cb, void *ctx);
/* Takes @serial from the shelf. The guest must have unmounted it. */
int vmm_disk_detach(struct vmm *vmm, const char *serial, vmm_done_fn cb, void *ctx);

/*
 * Templates: a machine is saved when its guest has come up and before it is given anything, and
 * others start from that in a small part of a boot's time. In them the guest goes on where it was
 * saved: its vsock connections are reset (it connects to the host again), its listening sockets
 * live; its clock and its random numbers are the template's until the caller sets them.
 *
 * Writes what a template of @cfg depends on (programs, kernel, devices, this boot of the host): a
 * template fits if and only if these bytes are the same. -EOPNOTSUPP: such a machine cannot be
 * saved (disks of its own, a root image; under QEMU: not microvm, or not under TCG). The caller frees *ret_key.
 */
int vmm_template_key(const struct vmm_config *cfg, uint8_t **ret_key, size_t *ret_len,
		     struct error *err);
/*
 * Saves a machine that was started with will_save to two new files. It stands still for some tens
 * of milliseconds.
 */
int vmm_template_save(struct vmm *vmm, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx);
/*
 * What a machine must be to go on from a state that vmm_snapshot() wrote, on any boot of any host:
 * text, the caller frees *ret_key. -EOPNOTSUPP as above.
 */
int vmm_snapshot_key(const struct vmm_config *cfg, char **ret_key, struct error *err);
/*
 * The same at any time of a machine's life, of one that vmm_snapshot_key() knows. It then stands
 * still, on failure too, until vmm_resume(): its disks can be copied to go with the rest.
 */
int vmm_snapshot(struct vmm *vmm, int ram_fd, int state_fd, vmm_done_fn cb, void *ctx);
/*
 * Writes to the new file @fd which pages a machine has used since it went on from a template: others then
 * have them sooner. Only VMM_MACHINE_BUILTIN can.
 */
int vmm_working_set(struct vmm *vmm, int fd, vmm_done_fn cb, void *ctx);
/*
 * The same, but of the memory only what has changed since the machine went on from a saved one, as another
 * layer over that. -EOPNOTSUPP in @cb's error: not VMM_MACHINE_BUILTIN, or one that was booted.
 */
int vmm_snapshot_layer(struct vmm *vmm, const struct vmm_layer *to, int state_fd, vmm_done_fn cb,
		       void *ctx);

/*
 * Machines of one kind, made ahead of their use: what vmm_kind_save() gives of a configuration is kept
 * with the template, and vmm_spawn_kind() starts another machine from that alone. It is for files of our
 * own, checked by vmm_kind_key(): the key of the template that machines of the kind start from now.
 */
struct vmm_kind {
	enum vmm_machine machine;
	uint32_t memory_mib, vcpus;
	enum vmm_nic_kind nics[VMM_MAX_NICS];
	unsigned n_queues[VMM_MAX_NICS];
	size_t n_nics, n_shares;
};

int vmm_kind_save(const struct vmm_config *cfg, uint8_t **ret_kind, size_t *ret_len,
		  struct error *err);
int vmm_kind_key(const uint8_t *kind, size_t len, uint8_t **ret_key, size_t *ret_len,
		 struct error *err);
int vmm_kind_describe(const uint8_t *kind, size_t len, struct vmm_kind *ret, struct error *err);
/*
 * As vmm_spawn(). Of @cfg count id, dir, uids, program, the descriptors and cgroup_parent, and of its cards
 * the descriptors; it starts from a template.
 */
int vmm_spawn_kind(uv_loop_t *loop, const uint8_t *kind, size_t len, const struct vmm_config *cfg,
		   const struct vmm_events *events, void *ctx, struct vmm **ret_vmm,
		   struct error *err) __attribute__((warn_unused_result));
/*
 * Makes the directory @from of a running VM @to, which may be an empty directory: the VM does not notice.
 * Who has it afterwards is who vmm_attach()es. -ENOENT: somebody else has taken it.
 */
int vmm_move(const char *from, const char *to) __attribute__((warn_unused_result));

/* The last VMM_CONSOLE_RING bytes of the guest's console, raw. */
int vmm_console(struct vmm *vmm, vmm_text_fn cb, void *ctx);

/*
 * Frees all that a VM of @dir holds: processes (waits for their end), cgroup, sockets, files made
 * by this folder; leaves @dir itself. Synchronous, idempotent, needs no living process of ours;
 * 0 when there was nothing to do.
 */
int vmm_reclaim(const char *dir, struct error *err);

/* Begins the names of sockets that cards listen on, where the caller has made such. */
#define VMM_SOCK_NIC "nic.sock_"
/* The process of the VM in @dir; 0: none runs there. */
pid_t vmm_running(const char *dir);
/* Connects to the socket @name ("vsock.sock") in @dir whatever the length of the path. */
int vmm_sock_connect(const char *dir, const char *name, struct error *err);
/* Makes a listening socket @name ("vsock.sock_1030") in @dir, mode 0600. */
int vmm_sock_listen(const char *dir, const char *name, int backlog, struct error *err);

/* --- what this host can do; for `doctor` --- */

struct vmm_host {
	bool kvm_usable;
	char kvm_why[160];          /* "ok", or why not */
	char qemu_path[256];        /* empty: not found */
	uint32_t tsc_khz;           /* of a TSC fit as a clock, else 0 */
};

/*
 * Runs 64-bit guest code under /dev/kvm in a short-lived child, and measures the TSC. The answers
 * are cached in @cache_dir (NULL: $CAISSON_RUN, else /run/caisson) for as long as the host stays
 * up, if that directory exists.
 */
int vmm_host_probe(const char *cache_dir, struct vmm_host *ret_host, struct error *err);
