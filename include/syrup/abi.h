/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Layouts and numbers that kernel-side programs, the engine and applications
 * agree on. Written once, here: Rust reads them through bindgen
 * (include/build.rs), BPF programs and C applications include this file.
 *
 * Any change of a layout or a number raises SYRUP_ABI_VERSION: policies compiled
 * for another version are then refused instead of misread.
 */
#ifndef SYRUP_ABI_H
#define SYRUP_ABI_H

#if defined(__bpf__)
/* BPF programs see no system headers: a policy compiles from this folder alone.
 * vmlinux.h defines the same types; C11 allows the repetition. */
typedef signed char __s8;
typedef unsigned char __u8;
typedef short int __s16;
typedef short unsigned int __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long int __s64;
typedef long long unsigned int __u64;
#else
#include <linux/types.h>
#endif

#define SYRUP_ABI_VERSION 3

/* Verdicts of schedule(): an executor's index (>= 0), or one of these. */
#define SYRUP_PASS (-1) /* the system's default decides */
#define SYRUP_DROP (-2) /* discard the input (packets only) */

/* App slots of the thread hook. Slot 0 owns SCHED_EXT threads that no app registered. */
#define SYRUP_MAX_APPS 64
/* Queues of one app at the thread hook; queue 0 is served first. */
#define SYRUP_MAX_QUEUES 8
/* Executors of one packet deployment. */
#define SYRUP_MAX_EXECUTORS 256
/* CPUs a core mask can name. */
#define SYRUP_MAX_CPUS 512

/* An executor index or thread index that was never assigned. */
#define SYRUP_INDEX_NONE 0xffffffffU

#define SYRUP_NAME_LEN 64

/*
 * One counter per cause, per CPU. Dispatcher, prologue and epilogue count;
 * readers add the CPUs up. At packet hooks each input is counted once, by what
 * became of it, and INPUTS and CHOSEN (of the counts per executor) are sums.
 */
enum syrup_counter {
	SYRUP_INPUTS,         /* inputs that reached the hook for this app */
	SYRUP_CHOSEN,         /* schedule() named an executor in range */
	SYRUP_PASSED,         /* schedule() said SYRUP_PASS */
	SYRUP_DROPPED,        /* schedule() said SYRUP_DROP and the input was discarded */
	SYRUP_OUT_OF_RANGE,   /* no such executor: the default decided */
	SYRUP_ENFORCE_FAILED, /* the executor refused (a closed socket): the default decided */
	SYRUP_NO_POLICY,      /* the slot was empty: the default decided */
	SYRUP_RESCUED,        /* thread hook: a starved thread was run by the root scheduler */
	SYRUP_NR_COUNTERS,
};

/* Why a thread is being queued; bits of syrup_thread.flags. */
enum syrup_thread_flag {
	SYRUP_THREAD_WAKEUP = 1 << 0,    /* it was blocked and became runnable */
	SYRUP_THREAD_PREEMPTED = 1 << 1, /* it lost the CPU with slice left */
	SYRUP_THREAD_EXPIRED = 1 << 2,   /* it used up its slice, or yielded */
};

/*
 * A thread as schedule() sees it: a copy, never the task itself. schedule()
 * may write `rank` and `slice_us`; writes to other fields change nothing.
 */
struct syrup_thread {
	__u32 index; /* given at registration; SYRUP_INDEX_NONE for an inherited thread */
	__u32 tid;
	__u32 tgid;
	__u32 flags;          /* enum syrup_thread_flag */
	__s32 cpu;            /* where it ran last */
	__u32 weight;         /* of its nice value: 100 at nice 0 */
	__u64 runtime_ns;     /* CPU time since it was registered */
	__u64 ran_ns;         /* CPU time since it last became runnable */
	__u64 runnable_at_ns; /* clock of syrup_now_ns(); kept when preempted, new when expired */
	__u64 rank; /* in, out: order inside the queue, smallest first; at first runnable_at_ns */
	__u32 slice_us; /* in, out: how long it may run; at first the root scheduler's default */
	__u32 _pad;
};
_Static_assert(sizeof(struct syrup_thread) == 64, "syrup_thread");

/* What SYRUP_THREAD_POLICY() says of a thread policy. */
enum syrup_executors {
	SYRUP_QUEUES = 0, /* an executor is a run queue of the app */
	SYRUP_CORES = 1,  /* an executor is a core of the app */
};

struct syrup_thread_policy {
	__u32 queues;    /* 1..SYRUP_MAX_QUEUES; 0 means 1 */
	__u32 preempt;   /* 1: an arrival in a queue preempts threads of later queues */
	__u32 executors; /* enum syrup_executors */
	__u32 rescue_ms; /* a thread that waits longer is run; 0: the default, 200 */
};
_Static_assert(sizeof(struct syrup_thread_policy) == 16, "syrup_thread_policy");

#endif /* SYRUP_ABI_H */
