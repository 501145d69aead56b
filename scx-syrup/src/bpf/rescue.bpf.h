/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The rescue of starved threads: a thread that waits longer than its app's
 * deadline runs for a short slice. A timer looks for such threads and appoints
 * a CPU for each; that CPU's dispatch() moves the thread; the timer ends its
 * slice. Part of the root scheduler.
 */
#ifndef SYRUP_SCX_RESCUE_BPF_H
#define SYRUP_SCX_RESCUE_BPF_H

#include "place.bpf.h"

#define NSEC_PER_SEC  1000000000ULL
#define NSEC_PER_MSEC 1000000ULL

/*
 * A starved thread gets this much at a time, at most once per CPU and rescue
 * tick, which is a sixteenth of the app's deadline: with the default 200 ms that
 * is 0.5 of every 12.5 ms, so starving threads costs an app at most 4 % of what
 * it wanted to run instead, and four starved threads per CPU still run within
 * 250 ms. The kernel ends slices at its own tick (4 ms at HZ=250), so the timer
 * ends this one.
 */
#define RESCUE_SLICE_NS   (500 * 1000ULL)
#define RESCUE_TICK_SHIFT 4

struct tick {
	struct bpf_timer timer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tick);
} syrup_tick SEC(".maps");

static __always_inline bool may_run_on(const struct task_struct *p, u32 cpu)
{
	/* A queued thread is not current, so nobody else changes its migration_disabled. */
	if (bpf_core_field_exists(p->migration_disabled) && p->migration_disabled &&
	    scx_bpf_task_cpu(p) != (s32)cpu)
		return false;
	return bpf_cpumask_test_cpu(cpu, p->cpus_ptr);
}

/*
 * For a thread that is far behind, more is allowed: the watchdog would end the
 * scheduler for every app. The tick is four times as fast: 16 % of the CPU, for apps
 * with thousands of starved threads. And the rescue leaves the app's cores, which
 * real-time threads may have taken for good.
 */
static __always_inline bool far_behind(const struct syrup_scx_app *app, u64 waited)
{
	return waited >= SYRUP_SCX_BEHIND * app->rescue_ns ||
	       waited >= SYRUP_SCX_BEHIND_MS * NSEC_PER_MSEC;
}

/*
 * How long a queued thread has not run. Threads of nobody are queued by that time
 * (ops.enqueue), those that were never registered by when they came.
 */
static __always_inline u64 waited_ns(struct task_struct *p, u64 now)
{
	struct syrup_scx_thread *t = thread_of(p);
	u64 since = p->scx.dsq_vtime;

	/* Keeps the two loads apart: one instruction may not read two kinds of pointers. */
	barrier_var(since);
	if (t)
		since = t->waits_since_ns;
	/* It may have come after `now`, on another CPU. */
	return before(now, since) ? 0 : now - since;
}

/*
 * The queues of an app, for the rescue: `index` counts its queues, then the
 * queues of its cores.
 */
static __always_inline u64 nth_queue(u32 slot, u32 index)
{
	return index < SYRUP_MAX_QUEUES ? queue_id(slot, index)
					: core_id(slot, index - SYRUP_MAX_QUEUES);
}

static __always_inline u32 nr_all_queues(const struct syrup_scx_app *app)
{
	return app->cores ? SYRUP_MAX_QUEUES + nr_cpus() : SYRUP_MAX_QUEUES;
}

/*
 * Runs the thread of `slot` that waits longest and may run on this CPU, if it
 * is overdue. Two passes, because an iterator can only move the thread it
 * stands on. Always the longest wait first: else ranks would decide which of
 * many starved threads are rescued, and the rest would meet the watchdog.
 */
__noinline int rescue(u32 slot, u32 cpu)
{
	struct syrup_scx_app *app = app_of(slot);
	u64 now = bpf_ktime_get_ns(), longest = 0;
	struct task_struct *p;
	u32 index;

	if (!app)
		return false;
	bpf_for(index, 0, nr_all_queues(app)) {
		bpf_for_each(scx_dsq, p, nth_queue(slot, index), 0) {
			u64 waited = waited_ns(p, now);

			if (waited > longest && may_run_on(p, cpu))
				longest = waited;
			if (!slot && longest)
				break; /* those behind it wait for less */
		}
	}
	if (!longest || longest < app->rescue_ns)
		return false;
	bpf_for(index, 0, nr_all_queues(app)) {
		bpf_for_each(scx_dsq, p, nth_queue(slot, index), 0) {
			struct syrup_scx_thread *t;

			if (waited_ns(p, now) < longest || !may_run_on(p, cpu))
				continue;
			scx_bpf_dsq_move_set_slice(BPF_FOR_EACH_ITER, RESCUE_SLICE_NS);
			if (!scx_bpf_dsq_move(BPF_FOR_EACH_ITER, p,
					      ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL_ON) | cpu, 0))
				continue;
			t = thread_of(p);
			if (t)
				t->state |= SYRUP_SCX_RESCUE;
			count(slot, SYRUP_RESCUED);
			return true;
		}
	}
	return false;
}

/*
 * Of the timer alone, which runs on one CPU at a time. In memory rather than in
 * registers because the verifier would follow every value they can have through
 * the loops around.
 */
static u32 best_cpu, best_score, excluded, appointments, first_slot, cpus_left;
static u64 watch_at;

/*
 * Which CPUs a look has left to appoint, as a thread found out that may run on all that
 * are online: with thousands overdue, the rest need not try each.
 */
enum syrup_cpus_left {
	SYRUP_ANY_LEFT,
	SYRUP_FOREIGN_LEFT, /* none of the app's: for threads that are far behind */
	SYRUP_NONE_LEFT,
};

/*
 * Appoints a CPU of the app to rescue p: an idle one, else one that runs a
 * thread of the same app, else one that runs another app's. When all of them
 * are appointed already, p waits for a later tick: other cores are for threads
 * that are far behind. dispatch() on that CPU does it; from here threads cannot
 * be moved on kernels that check who calls.
 */
static __always_inline void appoint(struct task_struct *p, u32 slot,
				    const struct syrup_scx_app *app, u64 waited)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	struct syrup_running *on;
	u32 cpu;

	best_score = 0;
	excluded = 0;
	bpf_for(cpu, 0, nr_cpus()) {
		bool home = app_has_cpu(app, cpu);
		u32 score = 1;

		on = running_on(cpu);
		if (!on || !bpf_cpumask_test_cpu(cpu, online))
			continue;
		if (!may_run_on(p, cpu)) {
			excluded++; /* clang makes a byte of a flag, against its type's size in BTF
				     */
			continue;
		}
		if (on->rescue || on->rescued)
			continue;
		if (on->active)
			score += on->slot == slot ? 2 : 1;
		if (home) {
			score += 4;
			if (scx_bpf_test_and_clear_cpu_idle(cpu))
				score += 8;
		}
		if (score > best_score) {
			best_score = score;
			best_cpu = cpu;
		}
		if (score > 8)
			break;
	}
	scx_bpf_put_cpumask(online);
	if (best_score < 4 && !excluded)
		cpus_left = best_score ? SYRUP_FOREIGN_LEFT : SYRUP_NONE_LEFT;
	if (!best_score || (best_score < 4 && !far_behind(app, waited)))
		return;
	on = running_on(best_cpu);
	if (on)
		on->rescue = slot + 1;
	appointments++;
	scx_bpf_kick_cpu(best_cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
}

/*
 * Appoints a CPU for each overdue thread of an app; returns when to look again.
 * The lock is for the verifier, which checks this function as part of the
 * sleepable ops.init that starts the timer.
 */
__noinline u64 watch_app(u32 slot)
{
	struct syrup_scx_app *app = app_of(slot);
	struct syrup_scx_time *time = time_of(slot);
	u64 now = bpf_ktime_get_ns(), longest = 0;
	struct task_struct *p;
	u32 index;

	if (!app || !time || !app->rescue_ns)
		return NSEC_PER_SEC;
	if (cpus_left == SYRUP_FOREIGN_LEFT)
		cpus_left = SYRUP_ANY_LEFT; /* that was found for another app */
	bpf_rcu_read_lock();
	bpf_for(index, 0, nr_all_queues(app)) {
		bpf_for_each(scx_dsq, p, nth_queue(slot, index), 0) {
			u64 waited = waited_ns(p, now);

			if (waited > longest)
				longest = waited;
			if (waited >= app->rescue_ns && appointments < nr_cpus() &&
			    (cpus_left == SYRUP_ANY_LEFT ||
			     (cpus_left == SYRUP_FOREIGN_LEFT && far_behind(app, waited))))
				appoint(p, slot, app, waited);
			/* Those behind it wait for less: anybody may bring thousands. */
			if (!slot && (waited < app->rescue_ns || cpus_left == SYRUP_NONE_LEFT ||
				      appointments >= nr_cpus()))
				break;
		}
	}
	bpf_rcu_read_unlock();
	time->longest_ns = longest;
	if (far_behind(app, longest))
		return app->rescue_ns >> (RESCUE_TICK_SHIFT + 2);
	if (longest >= app->rescue_ns)
		return app->rescue_ns >> RESCUE_TICK_SHIFT;
	/* The earliest moment a thread that waits now can be overdue. */
	return app->rescue_ns - longest;
}

/* Ends the rescues that run; true if others are about to. */
__noinline int end_rescues(void)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	u64 now = bpf_ktime_get_ns();
	int more = 0;
	u32 cpu;

	bpf_rcu_read_lock(); /* see watch_app() */
	bpf_for(cpu, 0, nr_cpus()) {
		struct syrup_running *on = running_on(cpu);

		if (!on)
			continue;
		/* It went before it came to its rescue. */
		if (on->rescue && !bpf_cpumask_test_cpu(cpu, online))
			on->rescue = 0;
		if (on->rescued && !before(now, on->since_ns + RESCUE_SLICE_NS))
			scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
		else if (on->rescued || (on->rescue && !taken_by_others(cpu)))
			more = 1;
	}
	bpf_rcu_read_unlock();
	scx_bpf_put_cpumask(online);
	return more;
}

static int on_tick(void *map, int *key, struct bpf_timer *timer)
{
	struct syrup_scx_root *root_state = root();
	u64 bits, now = bpf_ktime_get_ns(), next = 100 * NSEC_PER_MSEC;
	u32 i, first = first_slot % SYRUP_MAX_APPS;

	if (!root_state)
		return 0;
	if (end_rescues() && before(now + RESCUE_SLICE_NS, watch_at)) {
		bpf_timer_start(timer, RESCUE_SLICE_NS, 0);
		return 0;
	}
	if (before(now, watch_at)) {
		bpf_timer_start(timer, watch_at - now, 0);
		return 0;
	}
	appointments = 0;
	cpus_left = SYRUP_ANY_LEFT;
	/*
	 * One whose threads are all overdue takes every CPU that is left, so the next
	 * look begins with another.
	 */
	bits = root_state->slots_in_use;
	bits = bits >> first | bits << (SYRUP_MAX_APPS - first) % SYRUP_MAX_APPS;
	bpf_for(i, 0, SYRUP_MAX_APPS) {
		u32 slot, before_it = appointments;
		u64 again;

		if (!bits)
			break;
		slot = (first + lowest_bit(bits)) % SYRUP_MAX_APPS;
		bits &= bits - 1;
		again = watch_app(slot);
		if (!before_it && appointments)
			first_slot = slot + 1;
		if (again < next)
			next = again;
	}
	if (next < NSEC_PER_MSEC)
		next = NSEC_PER_MSEC;
	watch_at = now + next;
	bpf_timer_start(timer, appointments ? RESCUE_SLICE_NS : next, 0);
	return 0;
}

#endif /* SYRUP_SCX_RESCUE_BPF_H */
