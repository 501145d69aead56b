/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the root scheduler and the trusted half of policies share: the root's
 * maps, which a policy's loader hands to it by name, and the last step of an
 * enqueue, which is the same whether a policy or the default decided.
 */
#ifndef SYRUP_SCX_SHARED_BPF_H
#define SYRUP_SCX_SHARED_BPF_H

#include "kfuncs.bpf.h"
#include "layout.h"

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

/*
 * The thread being queued on this CPU, as its policy sees it. In a map of its
 * own rather than on the stack: the verifier then keeps schedule() inside these
 * 64 bytes, where a stack would also hold the task pointer. ops.enqueue runs
 * with the run queue locked and interrupts off, so nothing else on this CPU
 * uses the entry meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_thread);
} syrup_input SEC(".maps");

/* What runs on each CPU: written there, read from all, racy by design. */
struct syrup_running {
	__u64 exec_start; /* the thread's CPU time when it was last charged */
	__u64 rescued_at_ns;
	__u32 slot;
	__u32 queue;
	__u32 active;  /* a SCHED_EXT thread runs here */
	__u32 called;  /* call_for() a thread that counts on this CPU; 0: none does */
	__u32 rescue;  /* slot + 1 of an app with a starved thread for this CPU */
	__u32 rescued; /* a rescued thread runs: the timer ends it */
	__u32 trial;   /* enum syrup_trial */
	__u32 left_place;
	__u64 left_rank;
	__u32 put_back; /* the thread that runs lost its trial: it goes back to its place */
	__u32 unasked;  /* its slice ended and it went on: `queue` is what it was */
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

/* Queue ids: an app's queues, then one queue for each of its cores. */
#define CORE_PLACE 0x8000

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

/*
 * Does a thread of another class run on the CPU? While it does, the CPU comes for
 * threads of this class only when the kernel's deadline server makes it, and the
 * server works only while a thread of the class has the CPU as its own. The kernel's
 * own threads are soon gone.
 */
static __always_inline bool taken_by_others(u32 cpu)
{
	struct task_struct *curr;

	if (!bpf_ksym_exists(scx_bpf_cpu_curr))
		return false;
	curr = scx_bpf_cpu_curr(cpu);
	return curr && !(curr->flags & PF_KTHREAD) && curr->policy != SCHED_EXT;
}

/* Nothing comes for what waits for a CPU that is offline. */
static __always_inline bool is_online(u32 cpu)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	bool is = bpf_cpumask_test_cpu(cpu, online);

	scx_bpf_put_cpumask(online);
	return is;
}

/*
 * The thread's own CPU if it is one of the app's, else one of these that is online and
 * on which it may run, if possible one that others have not taken; negative when there
 * is none. Its own is where the kernel queues it, so it is online and allowed; the one
 * where it ran last need not be, and ops.select_cpu may name it all the same.
 */
static __always_inline s32 home_of(struct task_struct *p, const struct syrup_scx_app *app, u32 own)
{
	const struct cpumask *online;
	u32 nr = nr_cpus(), i;
	s32 home = -1;

	if (app_has_cpu(app, own))
		return own;
	online = scx_bpf_get_online_cpumask();
	bpf_for(i, 0, nr) {
		u32 cpu = (p->pid + i) % nr;
		bool taken;

		if (!app_has_cpu(app, cpu) || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr) ||
		    !bpf_cpumask_test_cpu(cpu, online))
			continue;
		taken = taken_by_others(cpu);
		if (home < 0 || !taken)
			home = cpu;
		if (!taken)
			break;
	}
	scx_bpf_put_cpumask(online);
	return home;
}

/*
 * Puts the thread into one of the queues of `slot`. `home` is a CPU that will come for
 * it. One that is not the thread's own and is taken by another class may never come
 * (taken_by_others()): then the thread goes to its own queue, which makes it that
 * CPU's, at the cost of order.
 */
static __always_inline void insert(struct task_struct *p, u32 slot, u32 place, s32 home,
				   u64 slice_ns, u64 rank, u64 enq_flags)
{
	u32 own = scx_bpf_task_cpu(p);
	struct syrup_running *on = running_on(own);

	if (home >= 0 && home != (s32)own && taken_by_others(home) &&
	    bpf_cpumask_test_cpu(home, p->cpus_ptr)) {
		scx_bpf_dsq_insert(p, ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL_ON) | (u32)home,
				   slice_ns, enq_flags);
		return;
	}
	scx_bpf_dsq_insert_vtime(p, queue_id(slot, place), slice_ns, rank, enq_flags);
	/*
	 * Tells the trial on this CPU where the other was put. Between stopping and running
	 * of two threads nobody else is queued from here.
	 */
	if (!on || on->trial != SYRUP_TRIAL || on->active)
		return;
	if (place & CORE_PLACE && place != (CORE_PLACE | own))
		return;
	on->left_place = place;
	on->left_rank = rank;
	on->trial = SYRUP_TRIAL_PLACED;
}

/*
 * Wake flags are not passed on: a synchronous wake-up (any arrival on a socket) would
 * make the kernel choose the waker's busy CPU and call it idle.
 */
static __always_inline s32 pick_idle_cpu(struct task_struct *p, s32 prev_cpu)
{
	if (__COMPAT_HAS_scx_bpf_select_cpu_and)
		return scx_bpf_select_cpu_and(p, prev_cpu, 0, p->cpus_ptr, 0);
	return scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
}

/*
 * Takes an idle CPU of the app on which p may run; negative when there is
 * none. One that went offline may still be marked idle.
 */
static __always_inline s32 take_idle_cpu(struct task_struct *p, const struct syrup_scx_app *app,
					 s32 prev_cpu)
{
	s32 found;
	u32 cpu;

	if (!app->masked) {
		found = pick_idle_cpu(p, prev_cpu);
		return found < 0 || is_online(found) ? found : pick_idle_cpu(p, prev_cpu);
	}
	if (prev_cpu >= 0 && app_has_cpu(app, prev_cpu) &&
	    bpf_cpumask_test_cpu(prev_cpu, p->cpus_ptr) &&
	    scx_bpf_test_and_clear_cpu_idle(prev_cpu) && is_online(prev_cpu))
		return prev_cpu;
	bpf_for(cpu, 0, nr_cpus()) {
		if (app_has_cpu(app, cpu) && bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    scx_bpf_test_and_clear_cpu_idle(cpu) && is_online(cpu))
			return cpu;
	}
	return -1;
}

/*
 * What the thread may run now of a slice of `slice_ns`: all, or after a preemption
 * what is left, else threads that are preempted often would never reach its end
 * and keep those behind them in their queue waiting.
 */
static __always_inline u64 grant(struct syrup_scx_thread *t, u64 slice_ns)
{
	const u64 least_ns = SYRUP_SCX_MIN_SLICE_US * 1000ULL;

	t->slice_ns = slice_ns;
	return t->used_ns + least_ns < slice_ns ? slice_ns - t->used_ns : least_ns;
}

/* Never 0. */
static __always_inline u32 call_for(u32 slot, u32 queue)
{
	return 1U << 31 | slot << 8 | queue;
}

static __always_inline u32 called_slot(u32 called)
{
	return called >> 8 & 0xff;
}

static __always_inline u32 called_queue(u32 called)
{
	return called & 0xff;
}

/* The queue of the thread that runs. One that was not asked may be in the last by now. */
static __always_inline u32 queue_on(const struct syrup_running *on, const struct syrup_scx_app *app)
{
	return on->unasked ? app->last_queue : on->queue;
}

/*
 * Makes sure that a CPU comes for the thread that was just put into `queue`.
 * Kicks act after the run queue is unlocked, so the insertion, which the
 * kernel does when ops.enqueue returns, is visible to the CPU that comes.
 *
 * A CPU that is called may be choosing a thread at this moment and be past
 * `queue`: a move from another CPU's run queue drops the lock, and what asks for
 * a new choice then, a kick or the wake-up itself, is forgotten when the choice
 * is made. So the call is noted, and whoever runs there next sees it
 * (ops.running). If that was before the note, the kick finds it running.
 */
static __always_inline void call_cpu(struct task_struct *p, const struct syrup_scx_app *app,
				     u32 slot, u32 queue, bool preempt, bool has_cpu, u64 enq_flags)
{
	u32 cpu, victim = SYRUP_MAX_CPUS, worst = queue;
	struct syrup_running *own;
	s32 idle;

	/* Nothing was chosen: this CPU goes idle now, and looks again (ops.update_idle). */
	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_LAST) && app_has_cpu(app, scx_bpf_task_cpu(p)))
		return;
	/*
	 * select_cpu found an idle CPU; the wake-up itself makes it look. Unless it
	 * has chosen another thread meanwhile: its run queue, locked here, tells.
	 */
	own = running_on(scx_bpf_task_cpu(p));
	if (has_cpu && own && !own->active) {
		own->called = call_for(slot, queue);
		return;
	}
	idle = take_idle_cpu(p, app, scx_bpf_task_cpu(p));
	if (idle >= 0) {
		struct syrup_running *on = running_on(idle);

		if (on)
			on->called = call_for(slot, queue);
		scx_bpf_kick_cpu(idle, preempt ? ENUM(scx_kick_flags, SCX_KICK_PREEMPT)
					       : ENUM(scx_kick_flags, SCX_KICK_IDLE));
		return;
	}
	if (!preempt)
		return;
	bpf_for(cpu, 0, nr_cpus()) {
		struct syrup_running *on = running_on(cpu);

		if (!on || !on->active || on->called || on->slot != slot)
			continue;
		if (queue_on(on, app) <= worst)
			continue;
		if (!app_has_cpu(app, cpu) || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
			continue;
		worst = queue_on(on, app);
		victim = cpu;
	}
	if (victim < SYRUP_MAX_CPUS) {
		struct syrup_running *on = running_on(victim);

		if (on)
			on->called = call_for(slot, queue);
		scx_bpf_kick_cpu(victim, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
	} else if (own && !own->active) {
		/* Nobody to preempt, but this one may be choosing. */
		own->called = call_for(slot, queue);
	}
}

#endif /* SYRUP_SCX_SHARED_BPF_H */
