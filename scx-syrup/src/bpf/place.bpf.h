/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where a thread waits, and which CPU comes for it. Part of the root scheduler.
 */
#ifndef SYRUP_SCX_PLACE_BPF_H
#define SYRUP_SCX_PLACE_BPF_H

#include "root.bpf.h"

/*
 * Since when a thread that is queued has not run; 0: it came just now. One that was never
 * registered has no storage: its rank in the queue is that time (ops.enqueue), which it keeps
 * when it is queued anew, as a change of its affinity makes the kernel do; whoever runs, or
 * enters the class, has none.
 */
static __always_inline u64 waits_since(struct task_struct *p, const struct syrup_scx_thread *t)
{
	u64 since = p->scx.dsq_vtime;

	/* Keeps the two loads apart: one instruction may not read two kinds of pointers. */
	barrier_var(since);
	if (t)
		since = t->waits_since_ns;
	return since;
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
static __always_inline void insert(struct task_struct *p, struct syrup_scx_thread *t, u32 slot,
				   u32 place, s32 home, u64 slice_ns, u64 rank, u64 enq_flags)
{
	u32 own = scx_bpf_task_cpu(p);
	struct syrup_running *on = running_on(own);

	if (home >= 0 && home != (s32)own && taken_by_others(home) &&
	    bpf_cpumask_test_cpu(home, p->cpus_ptr)) {
		scx_bpf_dsq_insert(p, ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL_ON) | (u32)home,
				   slice_ns, enq_flags);
		return;
	}
	/* Before it can be seen there. */
	if (t)
		count_waiting(t, slot);
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

/* The same of an app's own CPUs. One that went offline may still be marked idle. */
static __always_inline s32 take_named_idle_cpu(struct task_struct *p,
					       const struct syrup_scx_app *app, s32 prev_cpu)
{
	u32 cpu;

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

/* Takes an idle CPU of the app on which p may run; negative when there is none. */
static __always_inline s32 take_idle_cpu(struct task_struct *p, const struct syrup_scx_app *app,
					 s32 prev_cpu)
{
	s32 found;

	if (app->masked)
		return take_named_idle_cpu(p, app, prev_cpu);
	found = pick_idle_cpu(p, prev_cpu);
	return found < 0 || is_online(found) ? found : pick_idle_cpu(p, prev_cpu);
}

/* The same from ops.dispatch, from where the kernel lets nobody look for a near one. */
static __always_inline s32 take_any_idle_cpu(struct task_struct *p, const struct syrup_scx_app *app)
{
	s32 found;

	if (app->masked)
		return take_named_idle_cpu(p, app, -1);
	found = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	return found < 0 || is_online(found) ? found : -1;
}

/* Has the field where RCU can be preempted. */
struct task_struct___rcu {
	int rcu_read_lock_nesting;
} __attribute__((preserve_access_index));

/*
 * A thread that is queued, or leaves the CPU. For the one that is current the kernel counts
 * this program's own, where RCU can be preempted.
 */
static __always_inline bool migration_disabled(const struct task_struct *p)
{
	if (!bpf_core_field_exists(p->migration_disabled))
		return false;
	if (p->migration_disabled == 1 &&
	    bpf_core_field_exists(struct task_struct___rcu, rcu_read_lock_nesting))
		return p != bpf_get_current_task_btf();
	return p->migration_disabled;
}

/*
 * Nobody is asked about a thread that has its migration disabled: no other CPU can run it, and
 * on a real-time kernel it holds what others wait for. Nor about one that has ended but for a
 * few steps, under locks: it has no id any more by which the rescue would find it.
 */
static __always_inline bool goes_first(const struct task_struct *p)
{
	return migration_disabled(p) || p->exit_state;
}

/* Next on the CPU where it is, which may have chosen nothing already, and goes idle. */
static __always_inline void insert_local(struct task_struct *p, struct syrup_scx_thread *t,
					 u64 enq_flags)
{
	if (t)
		t->state = 0;
	scx_bpf_dsq_insert(p, ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL),
			   SYRUP_SCX_MIN_SLICE_US * 1000ULL, enq_flags);
	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_LAST))
		scx_bpf_kick_cpu(scx_bpf_task_cpu(p), 0);
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
 * Is it the app's turn on a CPU, rather than that of the app whose thread runs there? By
 * enough to be worth a switch: the end of a slice is not far.
 */
static __always_inline bool is_owed(const struct syrup_scx_app *app, u32 slot, u32 cpu)
{
	struct syrup_scx_standings *here = standings_on(cpu);
	struct syrup_running *on = running_on(cpu);
	struct syrup_scx_time *time = time_of(slot), *other_time;
	struct syrup_scx_app *other;
	u64 theirs, since, now;

	if (!here || !on || !time || !app_has_cpu(app, cpu) || !on->active || on->rescued ||
	    on->slot == slot)
		return false;
	other = app_of(on->slot);
	other_time = time_of(on->slot);
	if (!other || !other_time)
		return false;
	since = READ_ONCE(on->since_ns);
	now = bpf_ktime_get_ns();
	theirs = standing_of(here, on->slot, other, other_time);
	/* It may begin to run just now. */
	if (before(since, now))
		theirs += fair_by_weight(now - since, other->weight);
	return before(standing_of(here, slot, app, time) +
			      fair_by_weight(SYRUP_SCX_WORTH_NS, app->weight),
		      theirs);
}

/* The first of the app's own CPUs from `from` on, and then from 0 on. */
static __always_inline u32 named_from(const struct syrup_scx_app *app, u32 from)
{
	u32 i;

	bpf_for(i, 0, SYRUP_SCX_CPU_WORDS + 1) {
		u32 word = (from / 64 + i) % SYRUP_SCX_CPU_WORDS;
		u64 bits = app->cpus[word];

		if (!i)
			bits &= ~0ULL << from % 64;
		if (bits)
			return word * 64 + lowest_bit(bits);
	}
	return SYRUP_MAX_CPUS;
}

/*
 * One of the CPUs that the thread and its app may use, at random; its own when that is none
 * other.
 */
static __always_inline u32 any_other(const struct task_struct *p, const struct syrup_scx_app *app,
				     u32 own)
{
	const struct cpumask *online;
	u32 nr = nr_cpus(), other;

	if (!nr)
		return own;
	if (!app->masked) {
		online = scx_bpf_get_online_cpumask();
		other = bpf_cpumask_any_and_distribute(p->cpus_ptr, online);
		scx_bpf_put_cpumask(online);
		return other < nr ? other : own;
	}
	other = named_from(app, bpf_get_prandom_u32() % nr);
	if (other == own)
		other = named_from(app, (own + 1) % nr);
	return other < nr && bpf_cpumask_test_cpu(other, p->cpus_ptr) ? other : own;
}

static __always_inline bool is_better(u32 there, u32 here)
{
	struct syrup_scx_standings *at = standings_on(there), *from = standings_on(here);

	return at && from && fair_is_better(at, from, bpf_ktime_get_ns());
}

/* Where a thread that has to compete should: its own CPU, or another one, if that is better. */
static __always_inline u32 best_of_two(const struct task_struct *p, const struct syrup_scx_app *app,
				       u32 slot, u32 own)
{
	struct syrup_running *here = running_on(own), *there;
	u32 other = any_other(p, app, own);

	there = running_on(other);
	if (other == own || !here || !there || !there->active || there->slot == slot)
		return own;
	if (!app_has_cpu(app, own) || (here->active && here->slot == slot))
		return other;
	return is_better(other, own) ? other : own;
}

enum syrup_call {
	SYRUP_CALL_PREEMPTS = 1 << 0, /* threads of later queues give way to it */
	SYRUP_CALL_HAS_CPU = 1 << 1,  /* ops.select_cpu found an idle one */
};

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
 *
 * A function of its own: what calls a policy has 256 bytes of stack, with all above it.
 */
static __noinline int call_cpu(struct task_struct *p, u32 slot, u32 queue, u32 how, u64 enq_flags)
{
	struct syrup_scx_app *app = app_of(slot);
	u32 cpu, victim = SYRUP_MAX_CPUS, worst = queue;
	struct syrup_running *own;
	s32 idle;

	if (!app)
		return 0;
	/* Nothing was chosen: this CPU goes idle now, and looks again (ops.update_idle). */
	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_LAST) && app_has_cpu(app, scx_bpf_task_cpu(p)))
		return 0;
	/*
	 * select_cpu found an idle CPU; the wake-up itself makes it look. Unless it
	 * has chosen another thread meanwhile: its run queue, locked here, tells.
	 */
	own = running_on(scx_bpf_task_cpu(p));
	if (how & SYRUP_CALL_HAS_CPU && own && !own->active) {
		own->called = call_for(slot, queue);
		return 0;
	}
	idle = take_idle_cpu(p, app, scx_bpf_task_cpu(p));
	if (idle >= 0) {
		struct syrup_running *on = running_on(idle);

		if (on)
			on->called = call_for(slot, queue);
		scx_bpf_kick_cpu(idle, how & SYRUP_CALL_PREEMPTS
					       ? ENUM(scx_kick_flags, SCX_KICK_PREEMPT)
					       : ENUM(scx_kick_flags, SCX_KICK_IDLE));
		return 0;
	}
	bpf_for(cpu, 0, how & SYRUP_CALL_PREEMPTS ? nr_cpus() : 0) {
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
	if (victim >= SYRUP_MAX_CPUS) {
		cpu = best_of_two(p, app, slot, scx_bpf_task_cpu(p));
		if (is_owed(app, slot, cpu))
			victim = cpu;
	}
	if (victim < SYRUP_MAX_CPUS) {
		struct syrup_running *on = running_on(victim);

		if (on)
			on->called = call_for(slot, queue);
		scx_bpf_kick_cpu(victim, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
	} else if (how & SYRUP_CALL_PREEMPTS && own && !own->active) {
		/* Nobody to preempt, but this one may be choosing. */
		own->called = call_for(slot, queue);
	}
	return 0;
}

/* The same for a thread that waits for one CPU and no other. */
static __noinline int call_core(u32 slot, u32 cpu)
{
	struct syrup_scx_app *app = app_of(slot);

	if (app)
		scx_bpf_kick_cpu(cpu, is_owed(app, slot, cpu)
					      ? ENUM(scx_kick_flags, SCX_KICK_PREEMPT)
					      : ENUM(scx_kick_flags, SCX_KICK_IDLE));
	return 0;
}

#endif /* SYRUP_SCX_PLACE_BPF_H */
