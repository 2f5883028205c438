/* How fast a sandbox can be made at all: the least that C can do for the same isolation, and the
 * clock for everything that is a command.
 *
 *   floor plain    RUNS PARALLEL             fork and exec of /bin/true
 *   floor sandbox  RUNS PARALLEL             seven namespaces, overlay, /proc, /dev, /tmp, pivot_root
 *   floor limited  RUNS PARALLEL LEAF...     the same in fresh cgroups with limits; each LEAF is
 *                                            KIND=DIRECTORY, KIND one of memory cpu cpuacct pids v2
 *   floor command  RUNS PARALLEL ARGV...     any command; "%" in an argument becomes a number of its own
 *
 * PARALLEL processes take turns at RUNS runs. Printed: elapsed and CPU seconds (of this program and
 * all it waited for), then each run's nanoseconds, one a line. A run that fails ends the program.
 * The floor leaves out what a service needs besides: an init, seccomp, usage, outcome, protocol.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BASE "/tmp"
#define MAX_LEAVES 8
#define NAMESPACES (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWUSER)

struct leaf { const char *kind, *parent; char path[512]; };
struct shared { atomic_long next; long long took[]; };
static struct leaf leaves[MAX_LEAVES];
static int leaf_count;

static void must(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(const char *directory, const char *file, const char *text) {
    char path[640];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd >= 0, path);
    must(write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
    close(fd);
}

static void limit(const struct leaf *leaf) {
    int v2 = !strcmp(leaf->kind, "v2");
    if (v2 || !strcmp(leaf->kind, "memory"))
        put(leaf->path, v2 ? "memory.max" : "memory.limit_in_bytes", "268435456");
    if (v2) put(leaf->path, "cpu.max", "100000 100000");
    if (!strcmp(leaf->kind, "cpu")) put(leaf->path, "cpu.cfs_quota_us", "100000");
    if (v2 || !strcmp(leaf->kind, "pids")) put(leaf->path, "pids.max", "64");
}

static void make_leaves(long run) {
    for (int i = 0; i < leaf_count; i++) {
        snprintf(leaves[i].path, sizeof leaves[i].path, "%s/%ld", leaves[i].parent, run);
        must(mkdir(leaves[i].path, 0755) == 0, leaves[i].path);
        limit(&leaves[i]);
    }
}

static void remove_leaves(void) {
    for (int i = 0; i < leaf_count; i++)  /* the dead task may not have left its cgroup yet */
        while (rmdir(leaves[i].path)) must(errno == EBUSY, leaves[i].path);
}

static void bind_device(const char *name) {
    char from[64], to[64];
    snprintf(from, sizeof from, "/dev/%s", name);
    snprintf(to, sizeof to, BASE "/root/dev/%s", name);
    int fd = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    must(fd >= 0, to);
    close(fd);
    must(mount(from, to, NULL, MS_BIND, NULL) == 0, from);
}

/* The root is /usr: on a merged-/usr system /bin/true and its libraries are found below it as well, and
 * nothing is mounted below it, which overlay in a user namespace would refuse. */
static void new_root(void) {
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
    must(mount("tmpfs", BASE, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=16384") == 0, "tmpfs");
    must(!mkdir(BASE "/upper", 0755) && !mkdir(BASE "/work", 0755) && !mkdir(BASE "/root", 0755), "mkdir");
    must(mount("overlay", BASE "/root", "overlay", MS_NOSUID | MS_NODEV,
               "lowerdir=/usr,upperdir=" BASE "/upper,workdir=" BASE "/work") == 0, "overlay");
    const char *targets[] = {BASE "/root/proc", BASE "/root/dev", BASE "/root/tmp"};
    for (int i = 0; i < 3; i++) must(mkdir(targets[i], 0755) == 0, targets[i]);
    must(mount("proc", BASE "/root/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0, "proc");
    must(mount("tmpfs", BASE "/root/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k") == 0, "dev");
    const char *devices[] = {"null", "zero", "full", "random", "urandom"};
    for (int i = 0; i < 5; i++) bind_device(devices[i]);
    must(mount("tmpfs", BASE "/root/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m") == 0, "tmp");
    must(chdir(BASE "/root") == 0 && syscall(SYS_pivot_root, ".", ".") == 0, "pivot_root");
    must(umount2(".", MNT_DETACH) == 0, "detach");
}

static void into_leaves(pid_t pid) {
    char number[32];
    snprintf(number, sizeof number, "%d", pid);
    for (int i = 0; i < leaf_count; i++)
        if (strcmp(leaves[i].kind, "v2")) put(leaves[i].path, "cgroup.procs", number);
}

static pid_t sandbox(void) {
    int gate[2], v2 = -1;
    must(pipe2(gate, O_CLOEXEC) == 0, "pipe");
    struct clone_args args = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
    for (int i = 0; i < leaf_count; i++)
        if (!strcmp(leaves[i].kind, "v2")) {
            must((v2 = open(leaves[i].path, O_PATH | O_CLOEXEC)) >= 0, leaves[i].path);
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = v2;
        }
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    must(pid >= 0, "clone3");
    if (pid == 0) {
        char go;
        must(read(gate[0], &go, 1) == 1, "gate");
        must(setresgid(0, 0, 0) == 0 && setresuid(0, 0, 0) == 0, "setresuid");
        new_root();
        execl("/bin/true", "true", NULL);
        must(0, "exec");
    }
    char directory[32];
    snprintf(directory, sizeof directory, "/proc/%d", pid);
    put(directory, "uid_map", "0 200000 65536");
    put(directory, "gid_map", "0 200000 65536");
    into_leaves(pid);
    must(write(gate[1], "g", 1) == 1, "gate");
    close(gate[0]);
    close(gate[1]);
    if (v2 >= 0) close(v2);
    return pid;
}

static pid_t command(char **argv, long run) {
    pid_t pid = vfork();
    must(pid >= 0, "vfork");
    if (pid) return pid;
    static char numbered[64][256];
    char *copy[65] = {0};
    for (int i = 0; argv[i] && i < 64; i++) {
        char *mark = strchr(argv[i], '%');
        copy[i] = argv[i];
        if (!mark) continue;
        snprintf(numbered[i], sizeof numbered[i], "%.*s%ld%s", (int)(mark - argv[i]), argv[i], run, mark + 1);
        copy[i] = numbered[i];
    }
    execvp(copy[0], copy);
    must(0, copy[0]);
    return 0;
}

static void loop(struct shared *shared, long runs, const char *mode, char **argv) {
    char *true_argv[] = {"/bin/true", NULL};
    for (long run; (run = atomic_fetch_add(&shared->next, 1)) < runs;) {
        long long start = now();
        int status;
        make_leaves(run);
        pid_t pid = !strcmp(mode, "plain")     ? command(true_argv, run)
                    : !strcmp(mode, "command") ? command(argv, run)
                                               : sandbox();
        must(waitpid(pid, &status, 0) == pid, "wait");
        remove_leaves();
        shared->took[run] = now() - start;
        if (status) {
            fprintf(stderr, "floor: run %ld ended with wait status %#x\n", run, status);
            _exit(1);
        }
    }
}

static double cpu_seconds(int who) {
    struct rusage u;
    getrusage(who, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const char *mode = argv[1];
    long runs = atol(argv[2]), parallel = atol(argv[3]);
    if (!strcmp(mode, "limited"))
        for (char **word = argv + 4; *word && leaf_count < MAX_LEAVES; word++, leaf_count++) {
            char *directory = strchr(*word, '=');
            if (!directory) return 2;
            *directory = 0;
            leaves[leaf_count] = (struct leaf){.kind = *word, .parent = directory + 1};
        }
    size_t size = sizeof(struct shared) + runs * sizeof(long long);
    struct shared *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(shared != MAP_FAILED, "mmap");
    long long start = now();
    for (long i = 0; i < parallel; i++) {
        pid_t pid = fork();
        must(pid >= 0, "fork");
        if (pid == 0) {
            loop(shared, runs, mode, argv + 4);
            _exit(0);
        }
    }
    int failed = 0;
    for (int status; wait(&status) > 0;) failed |= status;
    if (failed) return 1;
    printf("%.9f %.6f\n", (now() - start) / 1e9, cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN));
    for (long i = 0; i < runs; i++) printf("%lld\n", shared->took[i]);
    return 0;
}
