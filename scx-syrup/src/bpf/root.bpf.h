/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the root scheduler share, and policies do not. */
#ifndef SYRUP_SCX_ROOT_BPF_H
#define SYRUP_SCX_ROOT_BPF_H

#include "shared.bpf.h"

#include "fairness.h"

#define NSEC_PER_MSEC 1000000ULL

/* Registered threads, and those that inherited from one. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct syrup_scx_thread);
} syrup_threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, struct syrup_scx_app);
} syrup_apps SEC(".maps");

/* Counters of all apps: slot * SYRUP_NR_COUNTERS + counter. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS *SYRUP_NR_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} syrup_counters SEC(".maps");

/* What runs on each CPU: written there, read from all, racy by design. */
struct syrup_running {
	__u64 exec_start; /* the thread's CPU time when it was last charged */
	__u64 since_ns;   /* when it came, or went on */
	__u64 stopped_ns; /* when the one before it, or it, stopped */
	__u32 slot;
	__u32 queue;
	__u32 active;  /* a SCHED_EXT thread runs here */
	__u32 called;  /* call_for() a thread that counts on this CPU; 0: none does */
	__u32 rescue;  /* id of a starved thread that this CPU is to run; 0: of none */
	__u32 rescued; /* a rescued thread runs: the timer ends it */
	__u32 trial;   /* enum syrup_trial */
	__u32 left_place;
	__u64 left_rank;
	__u32 put_back;        /* the thread that runs lost its trial: it goes back to its place */
	__u32 unasked;         /* its slice ended and it went on: `queue` is what it was */
	__u32 rescued_slot;    /* of the last thread that was to be rescued here */
	__u32 rescuing;        /* the thread that comes next is this one's rescue */
	__u32 rescue_slice_ns; /* of the rescue that runs */
	__u32 next_slice_ns;   /* of `rescuing` */
	__u32 next_rests;      /* the same */
	__u32 appointed_ns;    /* slice of `rescue` */
	__u32 rests;         /* after the rescue that runs: it was the CPU's time, not its app's */
	__u32 overlooked;    /* a thread that may be overdue, and is not in its place on the list */
	__u64 looked_far_ns; /* by the rescue */
	__u64 rests_until_ns; /* from rescues */
} __attribute__((aligned(64)));

/*
 * Where a thread comes whose slice has ended is known when its policy was asked,
 * and that is after the CPU has chosen the next thread. So the next one of its app
 * is taken on trial, and gives way at once if the place that was left for the other
 * comes before its own.
 */
enum syrup_trial {
	SYRUP_NO_TRIAL,
	SYRUP_TRIAL,        /* the next one was taken, the policy was not asked yet */
	SYRUP_TRIAL_PLACED, /* left_place and left_rank are the other's place */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct syrup_running);
} syrup_running SEC(".maps");

static __always_inline u64 queue_id(u32 slot, u32 place)
{
	return (u64)slot << 16 | place;
}

static __always_inline u64 core_id(u32 slot, u32 cpu)
{
	return queue_id(slot, CORE_PLACE | cpu);
}

static __always_inline struct syrup_scx_thread *thread_of(struct task_struct *p)
{
	return bpf_task_storage_get(&syrup_threads, p, NULL, 0);
}

static __always_inline struct syrup_scx_app *app_of(u32 slot)
{
	return bpf_map_lookup_elem(&syrup_apps, &slot);
}

static __always_inline struct syrup_running *running_on(u32 cpu)
{
	return bpf_map_lookup_elem(&syrup_running, &cpu);
}

static __always_inline void count(u32 slot, u32 counter)
{
	u32 key = slot * SYRUP_NR_COUNTERS + counter;
	u64 *value = bpf_map_lookup_elem(&syrup_counters, &key);

	if (value)
		(*value)++;
}

static __always_inline bool app_has_cpu(const struct syrup_scx_app *app, u32 cpu)
{
	return !app->masked || (app->cpus[cpu / 64 % SYRUP_SCX_CPU_WORDS] >> (cpu % 64) & 1);
}

/* Upper bound for loops over CPUs. */
static __always_inline u32 nr_cpus(void)
{
	u32 nr = bpf_ksym_exists(scx_bpf_nr_cpu_ids) ? scx_bpf_nr_cpu_ids() : SYRUP_MAX_CPUS;

	return nr < SYRUP_MAX_CPUS ? nr : SYRUP_MAX_CPUS;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_scx_root);
} syrup_root SEC(".maps");

static __always_inline struct syrup_scx_root *root(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&syrup_root, &zero);
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, struct syrup_scx_time);
} syrup_times SEC(".maps");

/* How often an app was expelled: whoever takes the threads out looks at this. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} syrup_expulsions SEC(".maps");

static __always_inline struct syrup_scx_time *time_of(u32 slot)
{
	return bpf_map_lookup_elem(&syrup_times, &slot);
}

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

/*
 * Threads of an app that have a CPU, and that wait in its queues. Counted where they come and
 * go, and never written by the loader, which would lose some.
 */
struct syrup_load {
	s32 running;
	s32 waiting;
} __attribute__((aligned(64)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, struct syrup_load);
} syrup_loads SEC(".maps");

static __always_inline struct syrup_load *load_of(u32 slot)
{
	return bpf_map_lookup_elem(&syrup_loads, &slot);
}

/*
 * A bit for each app with threads that may wait, so that those without cost nothing. Set when
 * the first is counted, and cleared by a CPU that finds it set although none is. Both look at
 * the other's word after they wrote their own: whoever is last puts it right. Bit 0 is set where
 * that is asked: of the threads of nobody most cannot be counted.
 */
u64 syrup_waiting __attribute__((aligned(64)));

static __always_inline void has_waiting(u32 slot)
{
	if (!(READ_ONCE(syrup_waiting) >> slot & 1))
		__sync_fetch_and_or(&syrup_waiting, 1ULL << slot);
}

/* It has a CPU, or waits no more. */
static __always_inline void count_no_longer(struct syrup_scx_thread *t)
{
	struct syrup_load *load = load_of(t->waits_in - 1);

	if (load)
		__sync_fetch_and_add(&load->waiting, -1);
	t->waits_in = 0;
}

static __always_inline void count_waiting(struct syrup_scx_thread *t, u32 slot)
{
	struct syrup_load *load = load_of(slot);
	s32 were;

	if (t->waits_in == slot + 1)
		return;
	count_no_longer(t);
	if (!load)
		return;
	t->waits_in = slot + 1;
	were = __sync_fetch_and_add(&load->waiting, 1);
	barrier_var(were); /* unused, it would become an addition that orders nothing */
	has_waiting(slot);
}

/* Does a thread of the app wait anywhere? */
static __always_inline bool may_wait(u32 slot)
{
	struct syrup_load *load = load_of(slot);
	u64 bits;

	if (!slot || !load || READ_ONCE(load->waiting) > 0)
		return true;
	bits = __sync_fetch_and_and(&syrup_waiting, ~(1ULL << slot));
	barrier_var(bits); /* see above */
	if (READ_ONCE(load->waiting) <= 0)
		return false;
	has_waiting(slot);
	return true;
}

static __always_inline u64 waiting_slots(void)
{
	u64 bits = READ_ONCE(syrup_waiting) & ~1ULL;

	return scx_bpf_dsq_nr_queued(queue_id(0, 0)) > 0 ? bits | 1 : bits;
}

/* How the apps stand on each CPU: fairness.h. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_CPUS);
	__type(key, __u32);
	__type(value, struct syrup_scx_standings);
} syrup_standings SEC(".maps");

static __always_inline struct syrup_scx_standings *standings_on(u32 cpu)
{
	return bpf_map_lookup_elem(&syrup_standings, &cpu);
}

/* Threads of nobody, and of apps that are gone, belong to slot 0. */
static __always_inline u32 slot_of(const struct syrup_scx_thread *t)
{
	struct syrup_scx_app *app;
	u32 slot = t ? t->slot : 0;

	if (slot >= SYRUP_MAX_APPS)
		return 0;
	app = app_of(slot);
	return t && app && app->in_use && app->generation == t->generation ? slot : 0;
}

static __always_inline bool before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

/* Where an app stands on a CPU. */
static __always_inline u64 standing_of(const struct syrup_scx_standings *here, u32 slot,
				       const struct syrup_scx_app *app,
				       const struct syrup_scx_time *time)
{
	struct syrup_load *load = load_of(slot);
	s32 running = load ? load->running : 0;

	return fair_standing(here, slot, time->vtime_ns, app->weight, running > 0 ? running : 0);
}

/* Without branches: the verifier would follow each of them in every round of a loop. */
static __always_inline u32 lowest_bit(u64 bits)
{
	u64 below = (bits & -bits) - 1; /* as many ones as there are zeros below the bit */

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	below = below * 0x0101010101010101ULL >> 56;
	/* clang would know that it is below 64, and leave out what shows the verifier. */
	barrier_var(below);
	return below;
}

#endif /* SYRUP_SCX_ROOT_BPF_H */
