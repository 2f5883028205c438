#!/bin/bash
# PID 1 of the test machine: makes the scene that systemd makes on a Debian host, runs pytest,
# leaves its exit status and JUnit report on the second disk and switches the machine off.
# Messages and the tests' output go to the second serial line, which lane.py prints.
# $prefix (where the second disk is mounted), $slowdown, $seconds and $CI come from the kernel command line.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
results=$prefix/results

scene() {
    mount -t proc -o nosuid,nodev,noexec proc /proc
    mount -t sysfs -o nosuid,nodev,noexec sys /sys
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=000 devpts /dev/pts
    mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
    mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
    mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate cgroup2 /sys/fs/cgroup
    mount --make-rshared /
    ln -sfn /proc/self/fd /dev/fd
    hostname stockade-v2
    ip link set lo up
    # As systemd leaves it: nobody in the root cgroup but the kernel's threads and PID 1, and
    # only the controllers that its own units asked for are passed down.
    echo "+memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
    mkdir -p /sys/fs/cgroup/session.slice
}

tests() {
    cd "$prefix/checkout" || return 2
    mapfile -d '' -t arguments <"$results/arguments"
    (
        echo "$BASHPID" >/sys/fs/cgroup/session.slice/cgroup.procs
        export PREFIX=$prefix STOCKADE_VM=1
        export STOCKADE_TEST_SLOWDOWN=$slowdown PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
        # Interrupted in time, pytest still says what failed until then.
        exec setsid timeout --signal=INT --kill-after=30 "$seconds" \
            "$prefix/venv/bin/python" -m pytest -v --durations=25 -o console_output_style=classic -p no:cacheprovider \
            -o faulthandler_timeout=600 --junitxml="$results/junit.xml" "${arguments[@]}"
    ) </dev/null
}

exec >/dev/ttyS1 2>&1 </dev/null
stty -opost </dev/ttyS1
scene || { echo "the scene could not be made"; echo o >/proc/sysrq-trigger; sleep 60; }
echo "guest: $(uname -r), cgroup v2 controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"
tests 2>&1 | cat  # no terminal, so that pytest does not write lines over one another
echo "${PIPESTATUS[0]}" >"$results/status"
sync
mount -o remount,ro "$prefix"
echo o >/proc/sysrq-trigger
sleep 60
