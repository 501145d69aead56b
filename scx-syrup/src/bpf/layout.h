/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the root scheduler, the trusted half of thread policies and their
 * loader agree on. Private to this crate; Rust reads it through bindgen
 * (build.rs). All of it lives in maps pinned with the root scheduler, so a
 * change raises SYRUP_SCX_VERSION and another version's root is refused.
 */
#ifndef SYRUP_SCX_LAYOUT_H
#define SYRUP_SCX_LAYOUT_H

#include <syrup/abi.h>

#define SYRUP_SCX_VERSION   10
#define SYRUP_SCX_CPU_WORDS (SYRUP_MAX_CPUS / 64)

/* How long a thread runs when its policy does not say: as the kernel's own default. */
#define SYRUP_SCX_SLICE_US 20000U
/* Below it switching costs more than running; above it other apps wait too long. */
#define SYRUP_SCX_MIN_SLICE_US 100U
#define SYRUP_SCX_MAX_SLICE_US 100000U
#define SYRUP_SCX_RESCUE_MS    200U
/* An app that is owed so much of a CPU does not wait for the end of another's slice. */
#define SYRUP_SCX_WORTH_NS 1000000ULL
/* Threads of nobody, all together, are no app that others would share with. */
#define SYRUP_SCX_NOBODYS_WEIGHT 1U
/*
 * Threads of nobody that wait, from which on each runs for less, so that hundreds come
 * round before the watchdog asks. The kernel ends slices at its tick: none is shorter.
 */
#define SYRUP_SCX_MANY 64U

/* A thread that waits this long for a CPU makes the kernel end the scheduler. */
#define SYRUP_SCX_WATCHDOG_MS 10000U
/*
 * One that has waited for so many of its app's deadlines, or half as long as the
 * watchdog does, is far behind.
 */
#define SYRUP_SCX_BEHIND    10U
#define SYRUP_SCX_BEHIND_MS 5000U
_Static_assert(2 * SYRUP_SCX_BEHIND_MS == SYRUP_SCX_WATCHDOG_MS, "SYRUP_SCX_BEHIND_MS");

/*
 * For one that has waited for so long the rescue does all it can, whoever pays for it. An app
 * that keeps it at that for so long is expelled before the watchdog ends them all.
 */
#define SYRUP_SCX_LAST_MS  7000U
#define SYRUP_SCX_EXPEL_MS 500U

/* Threads that an app may have in the class when nobody said how many. */
#define SYRUP_SCX_THREADS 16384U

/* Indices that all apps' threads have at a time. */
#define SYRUP_SCX_INDICES (1U << 16)

/* As often in a minute it is put back when the kernel has ended it. */
#define SYRUP_SCX_RETURNS 3

/* An app's settings: written by the loader, read by the root scheduler. */
struct syrup_scx_app {
	__u32 in_use;
	__u32 weight;       /* share against other apps; 100 is normal */
	__u64 rescue_ns;    /* a thread that waits longer is run */
	__u32 nr_queues;    /* most that any policy of this deployment had: all are served */
	__u32 last_queue;   /* where threads go that the policy did not place */
	__u32 cores;        /* 1: the queues of single cores exist */
	__u32 masked;       /* enum syrup_scx_masked */
	__u32 generation;   /* of the slot's apps, of which this is the latest */
	__u32 user;         /* whose it is */
	__u32 most_threads; /* in the class */
	__u32 most_threads_of_user; /* in all the user's apps: the largest of these counts */
	__u64 cpus[SYRUP_SCX_CPU_WORDS];
};
_Static_assert(sizeof(struct syrup_scx_app) == 112, "syrup_scx_app");

/* Which CPUs are the app's. */
enum syrup_scx_masked {
	SYRUP_SCX_ALL_CPUS,   /* all, and those in `cpus` otherwise */
	SYRUP_SCX_NAMED_CPUS, /* by its user */
	SYRUP_SCX_FOUND_CPUS, /* online when a policy came that chooses cores, for as long as it
				 does */
};

/*
 * A registered thread: task storage, which loaders only read. A thread that is out of the
 * class when its app goes keeps its storage: the generation tells it from those of the
 * slot's next app.
 */
struct syrup_scx_thread {
	__u32 slot;
	__u32 index; /* which no other of its app has while it is in the class */
	__u32 generation;
	__u32 waits_in; /* slot + 1 of the app among whose waiting threads it is counted; 0: none */
	__u64 runtime_ns; /* see struct syrup_thread */
	__u64 ran_ns;
	__u64 runnable_at_ns;
	__u64 waits_since_ns; /* it became runnable, or last ran */
	__u64 slice_ns;       /* what its policy gave it when it was queued */
	__u64 used_ns;        /* of it since it woke or last used one up */
	__u16 queue;          /* executor it was queued for, for preemption */
	__u16 place;          /* low half of the id of the queue it was put into */
	__u32 state;          /* enum syrup_scx_state bits */
	__u32 claim;          /* the index it takes when it enters the class, if that is free */
	__u8 was_policy;      /* SCHED_OTHER, ...: it is that again when it is given back */
	__u8 was_priority;    /* of a real-time one */
	__u16 _pad;
};
_Static_assert(sizeof(struct syrup_scx_thread) == 80, "syrup_scx_thread");

enum syrup_scx_state {
	SYRUP_SCX_PREEMPTED = 1 << 0, /* lost its CPU with slice left */
	SYRUP_SCX_EXPIRED = 1 << 1,   /* used its slice up, or yielded */
	SYRUP_SCX_YIELDED = 1 << 2,
	SYRUP_SCX_RESCUE = 1 << 3,   /* runs on a slice of the rescue, not of its policy */
	SYRUP_SCX_IDLE_CPU = 1 << 4, /* select_cpu found an idle CPU, which will dispatch */
	SYRUP_SCX_PUT_BACK = 1 << 5, /* was taken too early: keeps its place, nobody is asked */
	SYRUP_SCX_PREEMPTS = 1 << 6, /* its policy lets it preempt others */
};

/* What became of an app's time: written by the root scheduler; a cache line for each. */
struct syrup_scx_time {
	__u64 vtime_ns;    /* CPU time by weight that it has had */
	__u64 longest_ns;  /* longest wait of a thread that waits, when the rescue last looked */
	__u64 beyond_ns;   /* for how long the rescue could not keep up, less the time it could */
	__u64 expelled_ns; /* when it was expelled; 0: it is not */
	__u64 waited_ns;   /* the longest wait then */
	__u64 refused;     /* threads, because it has as many as it may */
	__u64 refused_ns;  /* the last of them */
	__u64 _pad;
};
_Static_assert(sizeof(struct syrup_scx_time) == 64, "syrup_scx_time");

/* One entry: what the root scheduler and later loaders must know. */
struct syrup_scx_root {
	__u64 slots_in_use; /* bit per app slot; slot 0 always */
	__u64 enable_seq;   /* /sys/kernel/sched_ext/enable_seq after the last attach */
	__u32 version;      /* SYRUP_SCX_VERSION */
	__u32 nr_cpus;
	__u64 scheduler; /* enable_seq after the first attach: which one this is */
	__u64 returned_ns[SYRUP_SCX_RETURNS]; /* CLOCK_MONOTONIC when it was put back last */
	__u64 returning;                      /* 1: it is being put back, or that was interrupted */
};
_Static_assert(sizeof(struct syrup_scx_root) == 64, "syrup_scx_root");

/* One entry: why the kernel ended the root scheduler. */
struct syrup_scx_exit {
	__s64 exit_code;
	__u32 kind; /* enum scx_exit_kind; 0: it has not ended */
	__u32 _pad;
	char reason[128];
	char message[1024];
};
_Static_assert(sizeof(struct syrup_scx_exit) == 1168, "syrup_scx_exit");

/* Argument of the program that makes the queues of an app's cores. */
struct syrup_scx_make_cores {
	__u32 slot;
	__u32 nr_cpus;
};
_Static_assert(sizeof(struct syrup_scx_make_cores) == 8, "syrup_scx_make_cores");

/* Argument of the program that makes a thread an app's that is about to enter the class. */
struct syrup_scx_register {
	__s32 tid;
	__u32 slot; /* 0: it is nobody's */
	__u32 generation;
	__u32 index; /* it is to have */
};
_Static_assert(sizeof(struct syrup_scx_register) == 16, "syrup_scx_register");

/* For so long: whoever asked may have ended before the thread entered. */
#define SYRUP_SCX_REGISTER_MS 10000U

/* Whether an app may have another thread. */
enum syrup_scx_room {
	SYRUP_SCX_ROOM,
	SYRUP_SCX_APP_FULL,
	SYRUP_SCX_USER_FULL, /* its user has as many in all his apps */
};

/* Argument of the program that says it. */
struct syrup_scx_has_room {
	__u32 slot;
	__u32 _pad;
};
_Static_assert(sizeof(struct syrup_scx_has_room) == 8, "syrup_scx_has_room");

/* Argument of the program that gives a registered thread an index. */
struct syrup_scx_set_index {
	__s32 tid;
	__u32 slot;
	__u32 generation; /* another app's thread is left alone */
	__u32 index;
	__u32 by_force; /* 1: also from a thread that has ended, and not given it back yet */
};
_Static_assert(sizeof(struct syrup_scx_set_index) == 20, "syrup_scx_set_index");

/* Argument of the program that finds the smallest index no thread of an app has. */
struct syrup_scx_free_index {
	__u32 slot;
	__u32 index; /* it is written here */
};
_Static_assert(sizeof(struct syrup_scx_free_index) == 8, "syrup_scx_free_index");

#endif /* SYRUP_SCX_LAYOUT_H */
