"""Our statement of what a contained process may ask of the kernel: the calls by subject, and those a capability adds. Pure data.

What is missing is missing on purpose: loading kernel code, kexec, mounting, swapping, clocks, quota, keyrings (one per user
for all containers), userfaultfd, io_uring, perf, other processes' namespaces. The set agrees with Docker's default profile.
"""

from __future__ import annotations

ALWAYS: dict[str, str] = {
    "files": """
        open openat openat2 creat close close_range read write readv writev pread64 pwrite64 preadv pwritev preadv2
        pwritev2 lseek _llseek dup dup2 dup3 pipe pipe2 fcntl fcntl64 ioctl flock fsync fdatasync sync syncfs
        sync_file_range truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 readahead
        copy_file_range sendfile sendfile64 splice tee vmsplice name_to_handle_at memfd_create memfd_secret""",
    "names": """
        stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 statmount
        listmount access faccessat faccessat2 getcwd chdir fchdir getdents getdents64 link linkat unlink unlinkat
        symlink symlinkat readlink readlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat chmod fchmod
        fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask utime utimes utimensat
        utimensat_time64 futimesat""",
    "attributes": """
        getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr
        listxattrat removexattr lremovexattr fremovexattr removexattrat""",
    "watching": """
        select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl
        epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 inotify_init inotify_init1
        inotify_add_watch inotify_rm_watch fanotify_mark io_setup io_destroy io_submit io_cancel io_getevents
        io_pgetevents io_pgetevents_time64""",
    "memory": """
        brk mmap mmap2 munmap mprotect mremap msync madvise mincore mlock mlock2 munlock mlockall munlockall
        remap_file_pages membarrier mseal map_shadow_stack pkey_alloc pkey_free pkey_mprotect""",
    "processes": """
        fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid getpgrp setpgid
        getsid setsid set_tid_address set_robust_list get_robust_list set_thread_area get_thread_area rseq prctl
        seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self pidfd_open pidfd_send_signal
        process_mrelease restart_syscall uretprobe getcpu getrusage times sysinfo uname getrandom""",
    "who": """
        getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32
        getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid
        setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget
        capset""",
    "limits and scheduling": """
        getrlimit ugetrlimit setrlimit prlimit64 getpriority setpriority ioprio_get ioprio_set sched_yield
        sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
        sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
        sched_rr_get_interval_time64""",
    "signals": """
        kill tkill tgkill pause alarm signalfd signalfd4 sigaltstack sigprocmask sigreturn rt_sigaction rt_sigpending
        rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
        rt_tgsigqueueinfo""",
    "locks": "futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue",
    "time": """
        time gettimeofday nanosleep adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64
        clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer setitimer timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
        timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64""",
    "sockets": """
        socketcall socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt
        send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64""",
    "ipc": """
        ipc shmget shmat shmctl shmdt semget semop semtimedop semtimedop_time64 semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64 mq_timedreceive
        mq_timedreceive_time64""",
    "statistics": "cachestat",
}

# Since 4.8 a tracer is itself filtered, so that tracing gives nothing away.
SINCE_4_8 = "ptrace process_vm_readv process_vm_writev"

WITH_ARCHITECTURE: dict[str, str] = {
    "x86_64": "arch_prctl modify_ldt",
    "i386": "modify_ldt",
    "arm": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
}

WITH_CAPABILITY: dict[str, str] = {
    "CAP_SYS_ADMIN": """
        mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick unshare setns clone
        clone3 sethostname setdomainname quotactl quotactl_fd bpf perf_event_open syslog lookup_dcookie fanotify_init
        lsm_get_self_attr lsm_set_self_attr lsm_list_modules""",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "init_module finit_module delete_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "ptrace kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy set_mempolicy mbind set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

# Address families the kernel offers to everybody but that containers do not get: kernel crypto (a long row of holes), and
# the hypervisor's channel, which no network namespace separates.
REFUSED_SOCKET_FAMILIES = (38, 40)  # AF_ALG, AF_VSOCK

# PER_LINUX, PER_LINUX32, both with UNAME26, and "tell me".
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
NAMESPACE_FLAGS = 0x7E020000
