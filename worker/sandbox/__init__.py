"""Theory of operation: how one step of a job is run in a fresh sandbox, by whom, and with which privileges.

Processes
    worker      unprivileged. Holds the read ends of the job's pipes, talks to the launcher through `client`.
    launcher    root. One thread, one poll loop, standard library only. Checks every request against this host's own
                ceilings (`plan`), writes cgroups, keeps deadlines, reads usage, kills, releases.
    zygote      root. Forks inits on demand and does nothing else, so that a fork copies few pages (`zygote`).
    init        PID 1 of a sandbox. Root in namespaces that the *initial* user namespace owns; builds the file
                system, then gives up every capability and only reaps (`init`).
    job         PID 2 of a sandbox. The only one in the step's cgroup. Ends up in a user namespace of its own, with the
                policy's capabilities, no_new_privs and a seccomp filter, and becomes the program by execve.
    child       short-lived, chrooted into a finished job's workspace: collects files, or cleans up (`confined`).

Pipes between them
    worker -- SOCK_SEQPACKET --> launcher   run (+ stdio, files) / kill / collect; ended, failed, file, collected
    launcher -- SOCK_SEQPACKET --> zygote   descriptors of one sandbox; a pidfd comes back
    launcher -- SOCK_SEQPACKET --> init     build, then run; exec, exit, failed come back
    init -- SOCK_SEQPACKET --> job          the same run, and "go" when the user namespace is mapped

Life of a sandbox
    1  made ahead of demand: cgroup, namespaces, both tasks; the job's task has joined the cgroup (`pool`, `sandbox`)
    2  built, perhaps also ahead: tmpfs, idmapped layers, overlay, /proc, /dev, pivot_root (`mounts`, `workspace`)
    3  a request comes: limits are written, init and the job's task get their orders, the program runs
    4  a deadline, a limit or the peer's leaving kills init: the kernel lets nobody fork in a PID namespace without
       its init and kills all in it. Where the job's task ends first, init ends, with the same effect
    5  the launcher sees init's pidfd, reads the counters, answers, removes the cgroup. The mounts went with the last
       process; the tmpfs goes with the connection, and with it all that the job ever wrote

Nothing is reused but an id range, and that only after every process that had it is gone. A launcher that dies takes
all of its sandboxes along (PR_SET_PDEATHSIG); the next one sweeps the cgroups that are left.

Failures of ours are `errors.SandboxError`; what the program did is data in the ``ended`` message. They never mix.
"""
