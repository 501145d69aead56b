/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The rescue of starved threads: a thread that waits longer than its app's deadline runs
 * for a short slice. A timer looks for such threads and appoints a CPU for each; that
 * CPU's dispatch() moves the thread; the timer ends its slice. Part of the root scheduler.
 *
 * Ranks and queues say nothing of how long a thread waits, and going through all that
 * wait takes longer than a slice where they are thousands. But the kernel has, for its
 * watchdog, a list per CPU of those that wait there, in the order in which they began to:
 * only its head is looked at.
 */
#ifndef SYRUP_SCX_RESCUE_BPF_H
#define SYRUP_SCX_RESCUE_BPF_H

#include "place.bpf.h"

/*
 * A starved thread gets this much at a time, and then its CPU rescues nobody for so many
 * times as long as that took, switching included: a sixteenth of a CPU, whatever the deadlines of
 * its apps are and however many threads starve, and an app pays for its rescues out of its share.
 * Four starved threads of a CPU run within 50 ms after the default deadline. One that has waited
 * for longer than RESCUE_MANY_NS is one of many, for whom it is enough to run at all: its
 * rescue is shorter, so that some two thousand of a CPU come round before the watchdog
 * asks. Only who has waited for longer than RESCUE_LAST_NS is not made to wait for a CPU
 * that rests: the watchdog would end the scheduler for every app. The kernel ends slices at
 * its own tick (4 ms at HZ=250), so the timer ends these.
 */
#define RESCUE_SLICE_NS      (500 * 1000U)
#define RESCUE_MANY_SLICE_NS (200 * 1000U)
#define RESCUE_REST          15
#define RESCUE_MANY_NS       (1000 * NSEC_PER_MSEC)
#define RESCUE_LAST_NS       (SYRUP_SCX_LAST_MS * NSEC_PER_MSEC)

/*
 * While somebody is overdue the timer looks so often in the shortest deadline; but not more
 * often than once in so long for each CPU there is, which it looks at.
 */
#define RESCUE_TICK_SHIFT 4
#define RESCUE_LOOK_NS    (10 * 1000U)

/*
 * Threads at the head of a CPU's list that a look reaches, and twice in the shortest
 * deadline (or in 100 ms): an app with hundreds that are overdue hides another's for no
 * longer. Of those that are not overdue only the first: an app with a shorter deadline may
 * have some behind them. Of all CPUs together, and then the next look goes on.
 */
#define RESCUE_REACH     64
#define RESCUE_REACH_FAR 1024
#define RESCUE_REACH_ALL 4096

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

/* How long a queued thread has not run. */
static __always_inline u64 waited_ns(struct task_struct *p, u64 now)
{
	u64 since = waits_since(p, thread_of(p));

	/* It may have come after `now`, on another CPU. */
	return before(now, since) ? 0 : now - since;
}

/* The app in whose queues a thread waits; SYRUP_MAX_APPS: in none. */
static __always_inline u32 slot_of_queue(u64 id)
{
	return id < queue_id(SYRUP_MAX_APPS, 0) ? id >> 16 : SYRUP_MAX_APPS;
}

/* A step on the kernel's list of those that wait on a CPU. */
struct syrup_waiter {
	u64 head; /* of the list */
	u64 node; /* the next one's; 0: there is none */
	u32 tid;
	u32 slot; /* see slot_of_queue() */
};

static __always_inline void first_waiter(struct syrup_waiter *w, u32 cpu)
{
	const struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);

	w->head = 0;
	w->node = 0;
	if (!rq)
		return;
	w->head = (u64)&rq->scx.runnable_list;
	w->node = (u64)BPF_CORE_READ(rq, scx.runnable_list.next);
}

/*
 * False at the end. Without the lock of the CPU's run queue, which the timer does not have,
 * a thread may leave the list meanwhile and lead to another CPU's, or nowhere: what is told
 * of it is asked anew by thread id, and steps are counted.
 */
static __always_inline bool next_waiter(struct syrup_waiter *w)
{
	u64 offset = bpf_core_field_offset(struct task_struct, scx.runnable_node);
	struct task_struct *p = (void *)(w->node - offset);
	struct scx_dispatch_q *queue;
	u64 node = w->node;

	if (!node || node == w->head)
		return false;
	w->node = (u64)BPF_CORE_READ(p, scx.runnable_node.next);
	if (w->node == node)
		w->node = 0; /* it has left the list */
	w->tid = BPF_CORE_READ(p, pid);
	queue = BPF_CORE_READ(p, scx.dsq);
	w->slot = queue ? slot_of_queue(BPF_CORE_READ(queue, id)) : SYRUP_MAX_APPS;
	return true;
}

/*
 * Gives the CPU the thread for the slice of a rescue if it waits in one of our queues, and
 * is overdue. No other queue is ever asked for, and none of ours is destroyed: some kernels
 * do not live through a move out of a queue that does not exist.
 */
static __always_inline bool rescue_task(struct task_struct *p, u32 cpu, u32 slice_ns)
{
	struct scx_dispatch_q *queue = p->scx.dsq;
	struct bpf_iter_scx_dsq it;
	struct syrup_scx_thread *t;
	struct syrup_scx_app *app;
	u64 id = queue ? queue->id : ~0ULL;
	u32 slot = slot_of_queue(id);
	bool moved = false;

	if (slot >= SYRUP_MAX_APPS || scx_bpf_dsq_nr_queued(id) <= 0)
		return false;
	app = app_of(slot);
	if (!app || waited_ns(p, bpf_ktime_get_ns()) < app->rescue_ns)
		return false;
	/* Whose affinity changes from here on is queued anew, and moves no more. */
	bpf_iter_scx_dsq_new(&it, id, 0);
	if (may_run_on(p, cpu) && p->scx.dsq == queue) {
		scx_bpf_dsq_move_set_slice(&it, slice_ns);
		moved = scx_bpf_dsq_move(&it, p, ENUM(scx_dsq_id_flags, SCX_DSQ_LOCAL_ON) | cpu, 0);
	}
	bpf_iter_scx_dsq_destroy(&it);
	if (!moved)
		return false;
	t = thread_of(p);
	if (t)
		t->state |= SYRUP_SCX_RESCUE;
	count(slot, SYRUP_RESCUED);
	return true;
}

/* Whether it did; `rests` if that is the CPU's time and not the app's. */
__noinline int rescue(u32 tid, u32 cpu, u32 slice_ns, u32 rests)
{
	struct syrup_running *on = running_on(cpu);
	struct task_struct *p;
	bool moved;

	if (!on)
		return 0;
	p = bpf_task_from_pid(tid);
	if (!p)
		return 0;
	moved = rescue_task(p, cpu, slice_ns);
	bpf_task_release(p);
	if (moved) {
		on->rescuing = tid;
		on->next_slice_ns = slice_ns;
		on->next_rests = rests;
	}
	return moved;
}

/* A thread of the app waits so long that the watchdog is not far. */
static __always_inline bool is_behind(u32 slot)
{
	struct syrup_scx_time *time = time_of(slot);

	return time && READ_ONCE(time->longest_ns) >= SYRUP_SCX_BEHIND_MS * NSEC_PER_MSEC;
}

/*
 * For an app that has more starved threads than the rescue can pass by: when it is the
 * app's turn on the CPU, that of its threads has it that waits longest there, whatever its
 * policy says. It is the app's own time, and nobody else pays for its threads.
 */
__noinline int rescue_oldest(u32 slot, u32 cpu)
{
	struct syrup_waiter w;
	u32 i;

	first_waiter(&w, cpu);
	bpf_for(i, 0, RESCUE_REACH) {
		if (!next_waiter(&w))
			break;
		if (w.slot == slot)
			return rescue(w.tid, cpu, RESCUE_SLICE_NS, 0);
	}
	return 0;
}

/*
 * Set by ops.exit, for the timer, which goes on. Volatile, or clang makes a byte of it,
 * against its type in BTF.
 */
static volatile u32 has_ended;

/*
 * Of the timer alone, which runs on one CPU at a time. In memory rather than in
 * registers because the verifier would follow every value they can have through
 * the loops around.
 */
static u64 seen, longest_ns[SYRUP_MAX_APPS], next_look_ns, watch_at, far_every_ns, told_ns;
static u32 reach, far, homes, young, first_cpu, looked_at, appointments, overdue, many, last_call;
/*
 * Of the overdue threads of a CPU, that of the app whose turn it is to be rescued there. While
 * some have waited for longer than RESCUE_LAST_NS, of these: nobody else's rest is theirs.
 */
static u32 chosen_tid, chosen_slot, chosen_distance;
static u64 chosen_waited_ns;

/*
 * Does the CPU serve the class? One that goes offline does not from the beginning on, and is
 * online for as long as threads wait there.
 */
static __always_inline bool serves(u32 cpu)
{
	const struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);

	return rq && rq->scx.flags & ENUM(scx_rq_flags, SCX_RQ_ONLINE);
}

/*
 * Which CPU rescues the thread: its own, or another of its app's if that one does not come.
 * Where none of these serves the class any more, any on which it may run: its queue is theirs.
 */
static __always_inline u32 rescuer_of(struct task_struct *p, const struct syrup_scx_app *app)
{
	const struct cpumask *online;
	u32 own = scx_bpf_task_cpu(p), other, cpu;
	bool is_home = app_has_cpu(app, own) && serves(own);

	if (is_home && !taken_by_others(own))
		return own;
	other = any_other(p, app, own);
	if (other != own && app_has_cpu(app, other) && serves(other) && may_run_on(p, other) &&
	    !taken_by_others(other))
		return other;
	if (is_home)
		return own;
	homes = 0;
	bpf_for(cpu, 0, nr_cpus()) {
		if (app_has_cpu(app, cpu) && serves(cpu) &&
		    bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
			homes++;
			break;
		}
	}
	if (homes)
		return SYRUP_MAX_CPUS;
	online = scx_bpf_get_online_cpumask();
	other = bpf_cpumask_any_and_distribute(p->cpus_ptr, online);
	scx_bpf_put_cpumask(online);
	return other < nr_cpus() && serves(other) ? other : SYRUP_MAX_CPUS;
}

/* dispatch() on that CPU does it: here some kernels let nobody move a thread. */
static __always_inline void appoint(u32 cpu, u32 slot, u32 tid, u64 waited)
{
	struct syrup_running *on = running_on(cpu);

	if (!on || on->rescue || (on->rescued && on->rests))
		return;
	if (waited < RESCUE_LAST_NS && before(bpf_ktime_get_ns(), on->rests_until_ns))
		return;
	on->rescue = tid;
	on->appointed_ns = waited < RESCUE_MANY_NS ? RESCUE_SLICE_NS : RESCUE_MANY_SLICE_NS;
	on->rescued_slot = slot;
	appointments++;
	scx_bpf_test_and_clear_cpu_idle(cpu);
	scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
}

/* Looks at one that waits on `cpu`; true if it is overdue. */
static __always_inline bool consider(struct task_struct *p, u32 slot, u32 cpu, u64 now)
{
	struct syrup_running *on = running_on(cpu);
	struct syrup_scx_app *app = app_of(slot);
	u64 waited = waited_ns(p, now);
	u32 rescuer, distance;

	if (!on || !app || !app->rescue_ns)
		return false;
	if (waited > longest_ns[slot])
		longest_ns[slot] = waited;
	if (waited < app->rescue_ns) {
		if (app->rescue_ns - waited < next_look_ns)
			next_look_ns = app->rescue_ns - waited;
		return false;
	}
	overdue++;
	if (waited >= RESCUE_MANY_NS)
		many++;
	if (waited >= RESCUE_LAST_NS)
		last_call++;
	rescuer = rescuer_of(p, app);
	if (rescuer != cpu) {
		if (rescuer < SYRUP_MAX_CPUS)
			appoint(rescuer, slot, p->pid, waited);
		return true;
	}
	/* Apps take turns, in the order of their slots. */
	distance = (slot - on->rescued_slot - 1) % SYRUP_MAX_APPS;
	if (waited < RESCUE_LAST_NS)
		distance += SYRUP_MAX_APPS;
	if (distance < chosen_distance) {
		chosen_distance = distance;
		chosen_slot = slot;
		chosen_tid = p->pid;
		chosen_waited_ns = waited;
	}
	return true;
}

/* In whose queue it waits. What a walk without a lock says is out of date, or another CPU's. */
static __always_inline u32 waits_in(const struct task_struct *p)
{
	struct scx_dispatch_q *queue = p->scx.dsq;

	return queue ? slot_of_queue(queue->id) : SYRUP_MAX_APPS;
}

/* Looks at the one that the list would show too late. */
static __always_inline void watch_overlooked(struct syrup_running *on, u32 cpu, u64 now)
{
	struct task_struct *p;
	bool is_overdue;
	u32 slot;

	if (!on->overlooked)
		return;
	p = bpf_task_from_pid(on->overlooked);
	if (!p) {
		on->overlooked = 0;
		return;
	}
	slot = waits_in(p);
	is_overdue = slot < SYRUP_MAX_APPS && scx_bpf_task_cpu(p) == (s32)cpu &&
		     consider(p, slot, cpu, now);
	if (!is_overdue)
		on->overlooked = 0;
	bpf_task_release(p);
}

/*
 * Looks at those that have waited longest on the CPU. The lock is for the verifier, which
 * checks this function as part of the sleepable ops.init that starts the timer.
 */
__noinline int watch_cpu(u32 cpu)
{
	struct syrup_running *on = running_on(cpu);
	u64 now = bpf_ktime_get_ns(), slots = waiting_slots();
	struct syrup_waiter w;
	u32 i;

	if (!on)
		return 0;
	seen = 0;
	young = 0;
	far = RESCUE_REACH;
	if (!before(now, on->rests_until_ns) && !before(now, on->looked_far_ns + far_every_ns)) {
		on->looked_far_ns = now;
		far = RESCUE_REACH_FAR;
	}
	chosen_distance = 2 * SYRUP_MAX_APPS;
	bpf_rcu_read_lock();
	watch_overlooked(on, cpu, now);
	first_waiter(&w, cpu);
	bpf_for(i, 0, RESCUE_REACH_FAR) {
		struct task_struct *p;
		u32 slot;

		/* One of each app is enough. */
		if (!(slots & ~seen))
			break;
		if (i >= far || young >= RESCUE_REACH || !reach || !next_waiter(&w))
			break;
		reach--;
		slot = w.slot;
		/* The first is the one that waits longest. */
		if (slot >= SYRUP_MAX_APPS || seen >> slot & 1)
			continue;
		p = bpf_task_from_pid(w.tid);
		if (!p)
			continue;
		slot = waits_in(p);
		if (slot < SYRUP_MAX_APPS && consider(p, slot, cpu, now))
			seen |= 1ULL << slot;
		else
			young++;
		bpf_task_release(p);
	}
	if (chosen_distance < 2 * SYRUP_MAX_APPS)
		appoint(cpu, chosen_slot, chosen_tid, chosen_waited_ns);
	/* Cut short: it begins the next look, and that is to be as far. */
	if (!reach && far == RESCUE_REACH_FAR)
		on->looked_far_ns = 0;
	bpf_rcu_read_unlock();
	return 0;
}

/* How often the timer looks for rescues to end. */
static __always_inline u32 end_interval(void)
{
	return many ? RESCUE_MANY_SLICE_NS : RESCUE_SLICE_NS;
}

/* Ends the rescues that run; returns after how long others are to be ended, 0 if there are none. */
__noinline u32 end_rescues(void)
{
	const struct cpumask *online = scx_bpf_get_online_cpumask();
	u64 now = bpf_ktime_get_ns();
	u32 cpu, next_ns = 0;

	bpf_rcu_read_lock(); /* see watch_cpu() */
	bpf_for(cpu, 0, nr_cpus()) {
		struct syrup_running *on = running_on(cpu);

		if (!on)
			continue;
		/* It went before it came to its rescue. */
		if (on->rescue && !bpf_cpumask_test_cpu(cpu, online))
			on->rescue = 0;
		if (on->rescued && !before(now, on->since_ns + on->rescue_slice_ns))
			scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
		else if (on->rescued || (on->rescue && !taken_by_others(cpu)))
			next_ns = end_interval();
	}
	bpf_rcu_read_unlock();
	scx_bpf_put_cpumask(online);
	return next_ns;
}

/* Begins a look: how long it may be until the next one. */
static __always_inline u64 shortest_deadline(u64 slots)
{
	u64 shortest = 100 * NSEC_PER_MSEC;
	u32 i;

	bpf_for(i, 0, SYRUP_MAX_APPS) {
		struct syrup_scx_app *app;

		if (!slots)
			break;
		app = app_of(lowest_bit(slots));
		slots &= slots - 1;
		if (app && app->rescue_ns && app->rescue_ns < shortest)
			shortest = app->rescue_ns;
	}
	return shortest;
}

/*
 * Expels an app for which all that the rescue can do is not enough: its threads are to be taken
 * out of the class, before the watchdog takes out everybody's. Not for what one look says: all
 * have waited for long when a virtual machine was stopped for a while. It is taken back when the
 * app is well again before anybody took its threads out; threads of nobody can come again, and
 * are expelled anew then.
 */
static __always_inline void expel(u32 slot, struct syrup_scx_time *time, u64 now, u64 elapsed)
{
	u32 zero = 0;
	u64 *expulsions = bpf_map_lookup_elem(&syrup_expulsions, &zero);
	struct syrup_scx_app *app = app_of(slot);

	if (time->longest_ns >= RESCUE_LAST_NS) {
		time->beyond_ns += elapsed;
	} else if (time->beyond_ns > elapsed) {
		time->beyond_ns -= elapsed;
	} else {
		time->beyond_ns = 0;
		if (app && app->in_use)
			time->expelled_ns = 0;
	}
	if (!expulsions || time->expelled_ns ||
	    time->beyond_ns < SYRUP_SCX_EXPEL_MS * NSEC_PER_MSEC)
		return;
	time->waited_ns = time->longest_ns;
	time->expelled_ns = now;
	__sync_fetch_and_add(expulsions, 1);
}

/* Ends the looks that saw all CPUs: what they saw of each app. */
static __always_inline bool tell(u64 slots, u64 now)
{
	u64 elapsed = now - told_ns;
	bool behind = false;
	u32 i;

	/* Nobody looked meanwhile. */
	if (elapsed > 100 * NSEC_PER_MSEC)
		elapsed = 100 * NSEC_PER_MSEC;
	told_ns = now;
	bpf_for(i, 0, SYRUP_MAX_APPS) {
		struct syrup_scx_time *time;
		u32 slot;

		if (!slots)
			break;
		slot = lowest_bit(slots);
		slots &= slots - 1;
		time = time_of(slot);
		if (!time || slot >= SYRUP_MAX_APPS)
			continue;
		time->longest_ns = longest_ns[slot];
		longest_ns[slot] = 0;
		expel(slot, time, now, elapsed);
		behind |= is_behind(slot);
	}
	return behind;
}

static int on_tick(void *map, int *key, struct bpf_timer *timer)
{
	struct syrup_scx_root *root_state = root();
	u64 now = bpf_ktime_get_ns(), shortest, soonest;
	u32 i, nr = nr_cpus(), from = first_cpu, end_ns;
	bool behind = false, complete;

	/* Others may run here now, and what is called below would be theirs. */
	if (!root_state || !nr || has_ended)
		return 0;
	end_ns = end_rescues();
	if (end_ns && before(now + end_ns, watch_at)) {
		bpf_timer_start(timer, end_ns, 0);
		return 0;
	}
	if (before(now, watch_at)) {
		bpf_timer_start(timer, watch_at - now, 0);
		return 0;
	}
	shortest = shortest_deadline(root_state->slots_in_use);
	next_look_ns = shortest;
	far_every_ns = shortest / 2;
	appointments = 0;
	overdue = 0;
	many = 0;
	last_call = 0;
	reach = RESCUE_REACH_ALL;
	/* Whatever is counted as waiting: this is for what should not be, too. */
	bpf_for(i, 0, nr) {
		if (!reach || looked_at >= nr)
			break;
		watch_cpu((from + i) % nr);
		/* Of this one not all was seen, unless it has more than there is. */
		if (!reach && i)
			break;
		first_cpu = (from + i + 1) % nr;
		looked_at++;
	}
	complete = looked_at >= nr;
	if (complete) {
		behind = tell(root_state->slots_in_use, now);
		looked_at = 0;
	}
	if (overdue)
		next_look_ns = shortest >> RESCUE_TICK_SHIFT;
	soonest = nr * RESCUE_LOOK_NS;
	if (soonest < NSEC_PER_MSEC)
		soonest = NSEC_PER_MSEC;
	/* A CPU rests for as long. */
	if (many && next_look_ns > (RESCUE_REST + 1) * RESCUE_MANY_SLICE_NS)
		next_look_ns = (RESCUE_REST + 1) * RESCUE_MANY_SLICE_NS;
	if (next_look_ns < soonest || !complete || last_call)
		next_look_ns = soonest;
	watch_at = now + next_look_ns;
	bpf_timer_start(timer, appointments || behind ? end_interval() : next_look_ns, 0);
	return 0;
}

#endif /* SYRUP_SCX_RESCUE_BPF_H */
