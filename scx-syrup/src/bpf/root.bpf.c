// SPDX-License-Identifier: GPL-2.0-only
/*
 * The resident root scheduler. It knows threads, apps and queues, and no
 * policy: from ops.enqueue it calls the policy of the thread's app, which
 * names a queue, and the rest is the same for all. Only threads that registered
 * are scheduled here (SCX_OPS_SWITCH_PARTIAL); EEVDF keeps everything else and
 * outranks this class.
 *
 * Between apps: the one that stands lowest on the CPU comes first (fairness.h),
 * among those that may use it and have a thread waiting. Inside an app: queue 0
 * first, then by rank.
 *
 * A bad idea for: an app that wants its threads to compete with the rest of the
 * machine as equals. They run only when no ordinary thread wants the CPU,
 * apart from what the kernel's deadline server gives the class.
 *
 * The ops stand in the order of a thread's life.
 */
#include "members.bpf.h"
#include "rescue.bpf.h"
#include "root.bpf.h"

char _license[] SEC("license") = "GPL";

/* Each app's policy for ops.enqueue. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, __u32);
} syrup_enqueue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syrup_scx_exit);
} syrup_exit SEC(".maps");

/* Joined while it ran, so that no ops.enqueue has placed it. */
static __always_inline bool never_placed(const struct syrup_scx_thread *t)
{
	return !t->runnable_at_ns;
}

/*
 * The slot that the thread belongs to on a CPU. One that may run on none of its app's
 * CPUs, which its user pinned elsewhere, is a thread of nobody there: no CPU of the app
 * would come for it.
 */
static __always_inline u32 slot_on(u32 cpu, struct task_struct *p, const struct syrup_scx_thread *t)
{
	u32 slot = slot_of(t);
	struct syrup_scx_app *app = app_of(slot);

	return app && home_of(p, app, cpu) >= 0 ? slot : 0;
}

/*
 * A child of a registered thread belongs to the same app, under no index. Also of an
 * app that is just going: it enters the class with its parent, and what is not known
 * to be the app's would not be given back.
 */
s32 SEC("struct_ops.s/init_task")
	BPF_PROG(syrup_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct syrup_scx_thread *parent, *child;
	struct syrup_membership *m;

	if (!args->fork)
		return joins_again(p);
	parent = bpf_task_storage_get(&syrup_threads, bpf_get_current_task_btf(), NULL, 0);
	if (!parent || !parent->slot)
		return 0;
	if (p->policy == SCHED_EXT && slot_of(parent) && room_in(parent->slot) != SYRUP_SCX_ROOM) {
		count_refused(parent->slot);
		return -11; /* EAGAIN, as where a cgroup has as many as it may */
	}
	m = make_member(p);
	child = thread_of(p);
	if (!m || !child)
		return -12; /* ENOMEM: the fork fails, as it would without us */
	child->slot = parent->slot;
	child->generation = parent->generation;
	child->index = SYRUP_INDEX_NONE;
	child->claim = SYRUP_INDEX_NONE;
	if (!BPF_CORE_READ_BITFIELD(bpf_get_current_task_btf(), sched_reset_on_fork)) {
		child->was_policy = parent->was_policy;
		child->was_priority = parent->was_priority;
	}
	if (p->policy != SCHED_EXT || !belongs_to(child))
		return 0;
	m->starts_in = child->slot;
	add_to_slot(&syrup_starting, child->slot, 1);
	return 0;
}

/* Enters the class: registered, forked by a thread that is in it, by itself, or at a return. */
void SEC("struct_ops/enable") BPF_PROG(syrup_enable, struct task_struct *p)
{
	join(p);
	take_claim(p);
	scx_bpf_task_set_dsq_vtime(p, 0); /* see waits_since() */
	has_started(p);
}

void SEC("struct_ops/exit_task")
	BPF_PROG(syrup_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	has_started(p);
}

/* Leaves it, or exits. */
void SEC("struct_ops/disable") BPF_PROG(syrup_disable, struct task_struct *p)
{
	leave(p);
	give_index(p);
	has_started(p);
}

/* Chooses where the thread wakes, and inserts nothing: its policy must see every wake-up. */
s32 SEC("struct_ops/select_cpu")
	BPF_PROG(syrup_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_scx_app *app = app_of(slot_of(t));
	s32 cpu;

	/* Where the executors are cores, only the policy knows which one to wake. */
	if (!app || app->cores)
		return prev_cpu;
	cpu = take_idle_cpu(p, app, prev_cpu);
	if (cpu < 0) {
		cpu = home_of(p, app, prev_cpu);
		return cpu < 0 ? prev_cpu : cpu;
	}
	if (t)
		t->state |= SYRUP_SCX_IDLE_CPU;
	return cpu;
}

/* What the policy is told of the thread, and what is remembered of its wait. */
static __always_inline u32 begin_wait(struct syrup_scx_thread *t, u64 enq_flags, u64 now)
{
	u32 flags = 0;

	if (enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP) || never_placed(t)) {
		flags = SYRUP_THREAD_WAKEUP;
		t->runnable_at_ns = now;
		t->waits_since_ns = now;
		t->ran_ns = 0;
		t->used_ns = 0;
	} else if (t->state & SYRUP_SCX_EXPIRED) {
		flags = SYRUP_THREAD_EXPIRED;
		t->runnable_at_ns = now;
		t->used_ns = 0;
	} else if (t->state & SYRUP_SCX_PREEMPTED) {
		flags = SYRUP_THREAD_PREEMPTED;
	}
	t->state &= SYRUP_SCX_IDLE_CPU;
	return flags;
}

/*
 * Asks the app's policy, which leaves its choice in syrup_choice; an empty slot does
 * nothing. A tail call from a subprogram comes back here.
 */
static __noinline int ask_policy(unsigned long long *ctx, u32 slot)
{
	bpf_tail_call(ctx, &syrup_enqueue, slot);
	asm volatile("" ::: "memory"); /* it was not known when this was compiled */
	return 0;
}

/*
 * Was queued anew while it waited (its affinity or its weight was changed), or lost a trial,
 * again and again: each time the kernel puts it behind all others on the list that the rescue
 * goes by.
 */
static __always_inline bool waits_too_long(struct task_struct *p, const struct syrup_scx_thread *t,
					   u64 enq_flags, u64 now)
{
	u64 since = waits_since(p, t);

	return !(enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP)) && since &&
	       !before(now, since + SYRUP_SCX_BEHIND_MS * NSEC_PER_MSEC);
}

static __always_inline bool app_has_place(const struct syrup_scx_app *app, u32 place)
{
	return place & CORE_PLACE ? app->cores && (place & ~CORE_PLACE) < nr_cpus()
				  : place < app->nr_queues;
}

/*
 * Has the policy choose; what it may not choose is put right. Returns the place, and leaves the
 * rest in `in`, `t` and `choice`.
 */
static __always_inline u32 place_of(unsigned long long *ctx, struct task_struct *p,
				    struct syrup_scx_thread *t, u32 slot,
				    const struct syrup_scx_app *app, struct syrup_thread *in,
				    struct syrup_choice *choice, u32 flags)
{
	in->index = t->index;
	in->tid = p->pid;
	in->tgid = p->tgid;
	in->flags = flags;
	in->cpu = scx_bpf_task_cpu(p);
	in->weight = p->scx.weight;
	in->runtime_ns = t->runtime_ns;
	in->ran_ns = t->ran_ns;
	in->runnable_at_ns = t->runnable_at_ns;
	in->rank = t->runnable_at_ns;
	in->slice_us = SYRUP_SCX_SLICE_US;
	in->_pad = 0;
	/* What holds without a policy: FIFO in the app's last queue. */
	choice->counter = SYRUP_NO_POLICY;
	choice->preempt = 0;
	ask_policy(ctx, slot);

	/* A policy's object can write here: what it says is checked. */
	if (choice->counter >= SYRUP_NR_COUNTERS ||
	    (choice->counter == SYRUP_CHOSEN && !app_has_place(app, choice->place)))
		choice->counter = SYRUP_OUT_OF_RANGE;
	count(slot, choice->counter);
	if (in->slice_us < SYRUP_SCX_MIN_SLICE_US)
		in->slice_us = SYRUP_SCX_MIN_SLICE_US;
	if (in->slice_us > SYRUP_SCX_MAX_SLICE_US)
		in->slice_us = SYRUP_SCX_MAX_SLICE_US;
	return choice->counter == SYRUP_CHOSEN ? choice->place : app->last_queue;
}

void SEC("struct_ops/enqueue") BPF_PROG(syrup_enqueue_op, struct task_struct *p, u64 enq_flags)
{
	struct syrup_scx_thread *t = thread_of(p);
	u32 zero = 0, slot = slot_on(scx_bpf_task_cpu(p), p, t), place = 0, flags, how = 0;
	struct syrup_scx_app *app = app_of(slot);
	u64 now = bpf_ktime_get_ns(), slice_ns = SYRUP_SCX_SLICE_US * 1000ULL, rank;
	bool first = goes_first(p) || waits_too_long(p, t, enq_flags, now);
	struct syrup_choice *choice;
	struct syrup_thread *in;
	s32 home = -1;

	in = bpf_map_lookup_elem(&syrup_input, &zero);
	choice = bpf_map_lookup_elem(&syrup_choice, &zero);
	if (!app || !in || !choice)
		return; /* cannot be: array entries always exist */

	if (t && slot && t->state & SYRUP_SCX_PUT_BACK && !first) {
		t->state &= SYRUP_SCX_PREEMPTS;
		if (t->state)
			how = SYRUP_CALL_PREEMPTS;
		place = t->place;
		rank = p->scx.dsq_vtime;
		slice_ns = grant(t, t->slice_ns);
	} else {
		flags = t ? begin_wait(t, enq_flags, now) : SYRUP_THREAD_WAKEUP;
		if (first) {
			insert_local(p, t, enq_flags);
			return;
		}
		count(slot, SYRUP_INPUTS);
		if (t && slot) {
			place = place_of(ctx, p, t, slot, app, in, choice, flags);
			rank = in->rank;
			slice_ns = grant(t, in->slice_us * 1000ULL);
			if (!(place & CORE_PLACE))
				home = home_of(p, app, scx_bpf_task_cpu(p));
			else
				home = place & ~CORE_PLACE;
			if (t->state & SYRUP_SCX_IDLE_CPU)
				how |= SYRUP_CALL_HAS_CPU;
			if (choice->preempt)
				how |= SYRUP_CALL_PREEMPTS;
			t->state = choice->preempt ? SYRUP_SCX_PREEMPTS : 0;
			t->queue = place & CORE_PLACE ? app->last_queue : place;
			t->place = place;
		} else {
			s32 waiting = scx_bpf_dsq_nr_queued(queue_id(0, 0));

			/* Anybody may bring thousands of these. */
			if (waiting > (s32)SYRUP_SCX_MANY)
				slice_ns = slice_ns * SYRUP_SCX_MANY / waiting;
			if (t)
				slice_ns = grant(t, slice_ns);
			rank = waits_since(p, t);
			if (!rank || (!t && enq_flags & ENUM(scx_enq_flags, SCX_ENQ_WAKEUP)))
				rank = now;
		}
	}
	insert(p, t, slot, place, home, slice_ns, rank, enq_flags);
	if (place & CORE_PLACE)
		call_core(slot, place & ~CORE_PLACE);
	else
		call_cpu(p, slot, place, how, enq_flags);
}

/*
 * Functions without `static` are verified once, for any arguments, instead of
 * at each call: nested in the loops below they would be too much.
 */

/* Does a thread of the app wait that this CPU could run? */
__noinline int app_waits(u32 slot, u32 cpu)
{
	struct syrup_scx_app *app = app_of(slot);
	u32 queue;

	if (!app || !app_has_cpu(app, cpu) || !may_wait(slot))
		return 0;
	/*
	 * What is counted is in one of the queues, or will be at once, or was taken out and has
	 * not run yet: beside an ordinary thread that can take the deadline server's second.
	 */
	if (slot && !app->cores)
		return 1;
	bpf_for(queue, 0, SYRUP_MAX_QUEUES) {
		if (queue >= app->nr_queues)
			break;
		if (scx_bpf_dsq_nr_queued(queue_id(slot, queue)) > 0)
			return 1;
	}
	return app->cores && scx_bpf_dsq_nr_queued(core_id(slot, cpu)) > 0;
}

/* Gives this CPU a thread of `slot` from the first `limit` queues. */
__noinline int dispatch_app(u32 slot, u32 cpu, u32 limit)
{
	struct syrup_scx_app *app = app_of(slot);
	u32 queue;

	if (!app)
		return 0;
	if (is_behind(slot) && rescue_oldest(slot, cpu))
		return 1;
	if (app->cores && limit && scx_bpf_dsq_move_to_local(core_id(slot, cpu), 0))
		return 1;
	if (app->nr_queues == 1)
		return limit && scx_bpf_dsq_move_to_local(queue_id(slot, 0), 0);
	bpf_for(queue, 0, SYRUP_MAX_QUEUES) {
		if (queue >= limit || queue >= app->nr_queues)
			break;
		if (scx_bpf_dsq_move_to_local(queue_id(slot, queue), 0))
			return 1;
	}
	return 0;
}

/*
 * Of the candidates (a bit per slot) that have a thread for this CPU, the one whose turn
 * it is. The app of the thread that would go on (`prev_slot`) competes too; when it is its
 * turn, then also whose it would be without it (next_of()). SYRUP_MAX_APPS: nobody's.
 */
__noinline u32 pick_app(u64 candidates, u32 cpu, u32 prev_slot)
{
	struct syrup_scx_standings *here = standings_on(cpu);
	u32 i, best = SYRUP_MAX_APPS;
	u64 lowest = 0, prev_standing = 0;

	if (!here)
		return best;
	bpf_for(i, 0, SYRUP_MAX_APPS) {
		struct syrup_scx_app *app;
		struct syrup_scx_time *time;
		u64 standing;
		u32 slot;

		if (!candidates)
			break;
		slot = lowest_bit(candidates);
		candidates &= candidates - 1;
		app = app_of(slot);
		time = time_of(slot);
		if (!app || !time)
			continue;
		if (slot != prev_slot && !app_waits(slot, cpu))
			continue;
		standing = standing_of(here, slot, app, time);
		fair_stand(here, slot, time->vtime_ns, standing);
		if (slot == prev_slot) {
			prev_standing = standing;
			continue;
		}
		if (best == SYRUP_MAX_APPS || before(standing, lowest)) {
			best = slot;
			lowest = standing;
		}
	}
	if (prev_slot < SYRUP_MAX_APPS &&
	    (best == SYRUP_MAX_APPS || !before(lowest, prev_standing)))
		return prev_slot | best << 8;
	return best | SYRUP_MAX_APPS << 8;
}

static __always_inline u32 turn_of(u32 picked)
{
	return picked & 0xff;
}

static __always_inline u32 next_of(u32 picked)
{
	return picked >> 8 & 0xff;
}

/*
 * The thread that would go on here may do so elsewhere, on an idle CPU or where its app is
 * owed more, and a thread of the app that waits here instead. Returns that CPU, else this one.
 */
static __always_inline u32 moves_to(struct task_struct *prev, u32 slot, u32 next, u32 cpu)
{
	struct syrup_scx_app *app = app_of(slot);
	struct syrup_running *there;
	s32 idle;
	u32 other;

	if (!app || app->cores || next >= SYRUP_MAX_APPS || migration_disabled(prev))
		return cpu;
	idle = take_any_idle_cpu(prev, app);
	if (idle >= 0)
		return idle;
	other = any_other(prev, app, cpu);
	there = running_on(other);
	if (other == cpu || !there || there->slot == next || !is_better(other, cpu) ||
	    !is_owed(app, slot, other))
		return cpu;
	return other;
}

/*
 * Must this CPU choose again, because it runs another thread than the one that counts
 * on it, which still waits (see call_cpu())?
 */
static __always_inline bool called_away(struct syrup_running *on)
{
	u32 called = on->called, slot = called_slot(called), queue = called_queue(called);
	struct syrup_scx_app *app = app_of(on->slot);

	on->called = 0;
	return called && app && !(slot == on->slot && queue_on(on, app) <= queue) &&
	       scx_bpf_dsq_nr_queued(queue_id(slot, queue)) > 0;
}

/* Charges the thread that runs, and its app, with what it ran since the last charge. */
static __always_inline void charge(struct syrup_running *on, struct task_struct *p,
				   struct syrup_scx_thread *t)
{
	u64 ran = p->se.sum_exec_runtime - on->exec_start;
	struct syrup_scx_app *app = app_of(on->slot);
	struct syrup_scx_time *time = time_of(on->slot);

	on->exec_start += ran;
	if (app && time)
		__sync_fetch_and_add(&time->vtime_ns, fair_by_weight(ran, app->weight));
	if (!t)
		return;
	t->runtime_ns += ran;
	t->ran_ns += ran;
	/* A rescue is on top of the thread's own slice, and a lost trial was none. */
	if (!on->rescued && !on->put_back)
		t->used_ns += ran;
}

/* The app was chosen, rather than come by because it was called or is rescued. */
static __always_inline void has_turn(u32 cpu, u32 slot)
{
	struct syrup_scx_standings *here = standings_on(cpu);
	struct syrup_scx_time *time = time_of(slot);
	struct syrup_scx_app *app = app_of(slot);

	if (here && app && time)
		fair_choose(here, standing_of(here, slot, app, time), app->weight);
}

static __always_inline bool slice_ended(const struct syrup_scx_thread *t)
{
	return t->state & SYRUP_SCX_YIELDED ||
	       (!(t->state & SYRUP_SCX_RESCUE) && t->used_ns >= t->slice_ns);
}

/*
 * The thread whose slice ended, or that was to give way, goes on: nothing that comes
 * before it waits for this CPU. There is nothing to choose from, so its policy is
 * asked only when there is (`unasked`). Leaving the choice to the kernel (no thread
 * dispatched, and SCX_ENQ_LAST) would end the work of the deadline server, which
 * starts again only when a thread comes to a CPU that had none: beside an ordinary
 * thread that never sleeps, that is never.
 */
static __always_inline void go_on(struct syrup_running *on, struct task_struct *prev,
				  struct syrup_scx_thread *t)
{
	u64 slice_ns = SYRUP_SCX_SLICE_US * 1000ULL, now = bpf_ktime_get_ns();

	has_turn(scx_bpf_task_cpu(prev), on->slot);
	on->since_ns = now;
	if (t && on->slot && !never_placed(t)) {
		if (slice_ended(t)) {
			t->runnable_at_ns = now;
			t->used_ns = 0;
			on->unasked = 1;
		}
		t->waits_since_ns = now;
		t->state = 0;
		slice_ns = grant(t, t->slice_ns);
		on->queue = t->queue;
	}
	on->rescued = 0;
	on->put_back = 0;
	scx_bpf_task_set_slice(prev, slice_ns);
	/* Called while it chose: see call_cpu(). */
	if (called_away(on))
		scx_bpf_kick_cpu(scx_bpf_task_cpu(prev), ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
}

static __always_inline bool queued(const struct task_struct *prev)
{
	return prev && prev->scx.flags & ENUM(scx_ent_flags, SCX_TASK_QUEUED);
}

void SEC("struct_ops/dispatch") BPF_PROG(syrup_dispatch, s32 cpu, struct task_struct *prev)
{
	struct syrup_running *on = running_on(cpu);
	struct syrup_scx_thread *t = NULL;
	u32 attempt, prev_slot = SYRUP_MAX_APPS, limit = 0;
	u64 candidates;

	if (!on)
		return;
	on->trial = SYRUP_NO_TRIAL;
	if (on->rescue) {
		u32 tid = on->rescue;

		on->rescue = 0;
		if (rescue(tid, cpu, on->appointed_ns, 1))
			return;
	}
	if (queued(prev)) {
		struct syrup_scx_app *app = app_of(on->slot);

		t = thread_of(prev);
		/*
		 * Outside its app's cores it does not go on (see running), nor as a thread
		 * of nobody when a core of its app is there again.
		 */
		if (app && app_has_cpu(app, cpu) && (on->slot || !slot_on(cpu, prev, t))) {
			prev_slot = on->slot;
			charge(on, prev, t);
			/* With some of its slice left it keeps its place in its queue. */
			limit = on->queue;
			if (!t || slice_ended(t) || on->unasked || on->rescued || on->put_back)
				limit = SYRUP_MAX_QUEUES;
		}
	}
	candidates = waiting_slots();
	if (prev_slot < SYRUP_MAX_APPS)
		candidates |= 1ULL << prev_slot;
	bpf_for(attempt, 0, SYRUP_MAX_APPS) {
		u32 picked = pick_app(candidates, cpu, prev_slot), slot = turn_of(picked);

		if (slot >= SYRUP_MAX_APPS)
			return;
		if (slot == prev_slot) {
			u32 other = moves_to(prev, slot, next_of(picked), cpu);

			if (other != (u32)cpu) {
				bool taken = dispatch_app(next_of(picked), cpu, SYRUP_MAX_QUEUES);

				/* Also when the other was faster: an idle one was marked as taken.
				 */
				scx_bpf_kick_cpu(other, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
				if (taken) {
					has_turn(cpu, next_of(picked));
					return;
				}
			}
			if (dispatch_app(slot, cpu, limit)) {
				has_turn(cpu, slot);
				if (limit == SYRUP_MAX_QUEUES && !on->rescued)
					on->trial = SYRUP_TRIAL;
				return;
			}
			if (queued(prev)) {
				go_on(on, prev, t);
				return;
			}
			/* It has gone: looking for others drops the lock now and then. */
			prev_slot = SYRUP_MAX_APPS;
		} else if (dispatch_app(slot, cpu, SYRUP_MAX_QUEUES)) {
			has_turn(cpu, slot);
			return;
		}
		/* Its threads may not run on this CPU, or another one was faster. */
		candidates &= ~(1ULL << slot);
	}
}

/* In the order of dispatch_app(). */
static __always_inline u32 order(u32 place)
{
	return place & CORE_PLACE ? 0 : place + 1;
}

/* Has the thread, taken on trial, its place behind the one that was left for the other? */
static __always_inline bool trial_lost(const struct syrup_running *on, const struct task_struct *p,
				       const struct syrup_scx_thread *t)
{
	u32 left = order(on->left_place), taken = order(t->place);

	return on->trial == SYRUP_TRIAL_PLACED &&
	       (left < taken || (left == taken && before(on->left_rank, p->scx.dsq_vtime)));
}

void SEC("struct_ops/running") BPF_PROG(syrup_running_op, struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	u32 cpu = scx_bpf_task_cpu(p), slot = slot_on(cpu, p, t);
	struct syrup_running *on = running_on(cpu);
	struct syrup_scx_app *app = app_of(slot);
	struct syrup_scx_time *time = time_of(slot);
	struct syrup_load *load = load_of(slot);
	bool same_app;

	if (t)
		count_no_longer(t);
	if (!on || !app || !time || !load)
		return;
	same_app = on->slot == slot;
	on->exec_start = p->se.sum_exec_runtime;
	on->slot = slot;
	on->since_ns = bpf_ktime_get_ns();
	on->rescued = on->rescuing && on->rescuing == (u32)p->pid;
	on->rescuing = 0;
	on->rescue_slice_ns = on->next_slice_ns;
	on->rests = on->next_rests;
	/* A rescue is short, and preempted at once it would be none. */
	on->queue = t && slot && !on->rescued ? t->queue : 0;
	on->put_back = t && slot && same_app && !on->rescued && trial_lost(on, p, t);
	on->trial = SYRUP_NO_TRIAL;
	on->unasked = t && never_placed(t);
	on->active = 1;
	__sync_fetch_and_add(&load->running, 1);
	if (on->rescued) {
		on->called = 0;
		return;
	}
	/* One that joins its app goes on where it ran, and leaves at once. */
	if (called_away(on) || on->put_back || !app_has_cpu(app, cpu))
		scx_bpf_kick_cpu(cpu, ENUM(scx_kick_flags, SCX_KICK_PREEMPT));
}

void SEC("struct_ops/stopping") BPF_PROG(syrup_stopping, struct task_struct *p, bool runnable)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_running *on = running_on(scx_bpf_task_cpu(p));
	struct syrup_load *load;
	bool cut_short, put_back;
	u64 now = bpf_ktime_get_ns(), switching;

	if (!on || !on->active)
		return;
	/* By the clock: a rescued thread can be charged from the CPU's last tick on. */
	switching = on->since_ns - on->stopped_ns;
	if (switching > NSEC_PER_MSEC)
		switching = 0; /* it was idle before */
	on->stopped_ns = now;
	cut_short = on->rescued && before(now, on->since_ns + on->rescue_slice_ns / 2);
	if (on->rescued && on->rests)
		on->rests_until_ns = now + RESCUE_REST * (now - on->since_ns + 2 * switching);
	charge(on, p, t);
	on->active = 0;
	load = load_of(on->slot);
	if (load)
		__sync_fetch_and_add(&load->running, -1);
	put_back = on->put_back;
	on->rescued = 0;
	on->put_back = 0;
	if (!t) {
		if (!runnable || !cut_short)
			scx_bpf_task_set_dsq_vtime(p, 0);
		return;
	}
	/*
	 * A rescue that something cut short is none, and a lost trial no run: to the kernel they
	 * are, so the thread is the last again on the list that the rescue goes by.
	 */
	if (put_back || (runnable && cut_short && !(t->state & SYRUP_SCX_YIELDED)))
		on->overlooked = p->pid;
	else
		t->waits_since_ns = now;
	if (!runnable) {
		t->state = 0;
		return;
	}
	/*
	 * The slice the kernel keeps says 0 for both after a preemption, so time
	 * decides. The end of a rescue is no end of a slice: the thread keeps its
	 * place.
	 */
	if (slice_ended(t) || on->unasked)
		t->state = SYRUP_SCX_EXPIRED;
	else if (put_back)
		t->state = SYRUP_SCX_PUT_BACK | (t->state & SYRUP_SCX_PREEMPTS);
	else
		t->state = SYRUP_SCX_PREEMPTED | (t->state & SYRUP_SCX_RESCUE);
}

/* Sleeps, or leaves the class, or is changed by somebody, which may be while it waits. */
void SEC("struct_ops/quiescent") BPF_PROG(syrup_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct syrup_scx_thread *t = thread_of(p);

	if (t)
		count_no_longer(t);
}

bool SEC("struct_ops/yield") BPF_PROG(syrup_yield, struct task_struct *from, struct task_struct *to)
{
	struct syrup_scx_thread *t = thread_of(from);

	if (to)
		return false;
	if (t)
		t->state |= SYRUP_SCX_YIELDED;
	scx_bpf_task_set_slice(from, 0);
	return true;
}

/* Is a thread of the app counted that this CPU may be able to run, and cannot see yet? */
static __always_inline bool is_coming(u32 slot, u32 cpu)
{
	struct syrup_scx_app *app = app_of(slot);

	return app && app_has_cpu(app, cpu) && may_wait(slot);
}

/*
 * A thread can be queued between the last look of a CPU that goes idle and the
 * moment when the CPU counts as idle. Nobody calls this CPU for it, so it looks once
 * more. Not one that goes offline: the kernel would never do the irq work of the kick,
 * nor any other of this CPU when it is back, and grace periods of RCU tasks hang on one.
 */
void SEC("struct_ops/update_idle") BPF_PROG(syrup_update_idle, s32 cpu, bool idle)
{
	u64 bits;
	u32 i;

	if (!idle)
		return;
	bits = waiting_slots();
	bpf_for(i, 0, SYRUP_MAX_APPS) {
		u32 slot;

		if (!bits)
			return;
		slot = lowest_bit(bits);
		bits &= bits - 1;
		if (app_waits(slot, cpu) || (slot && is_coming(slot, cpu))) {
			if (is_online(cpu))
				scx_bpf_kick_cpu(cpu, 0);
			return;
		}
	}
}

/*
 * An ordinary thread took the CPU: what waits in the CPU's own queue goes back
 * to its policy, for other CPUs to take.
 */
void SEC("struct_ops/cpu_release")
	BPF_PROG(syrup_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	scx_bpf_reenqueue_local();
}

/* Having these two, even empty, is what lets the scheduler survive CPU hotplug. */
void SEC("struct_ops/cpu_online") BPF_PROG(syrup_cpu_online, s32 cpu)
{
}

void SEC("struct_ops/cpu_offline") BPF_PROG(syrup_cpu_offline, s32 cpu)
{
}

static __always_inline s32 create_cores(u32 slot, u32 nr)
{
	u32 cpu;
	s32 err;

	bpf_for(cpu, 0, nr) {
		err = scx_bpf_create_dsq(core_id(slot, cpu), -1);
		if (err && err != -17) /* EEXIST: an earlier app of this slot had them */
			return err;
	}
	return 0;
}

/* No thread is in the class yet: what is counted of those that are was of a scheduler before. */
static __always_inline void begin_slot(u32 slot)
{
	struct syrup_load *load = load_of(slot);
	s64 *members = bpf_map_lookup_elem(&syrup_members, &slot);
	s64 *starting = bpf_map_lookup_elem(&syrup_starting, &slot);
	struct syrup_scx_app *app = app_of(slot);
	struct syrup_scx_time *time = time_of(slot);

	/* To be expelled, and the kernel was faster: its waits begin anew. */
	if (app && app->in_use && time) {
		time->longest_ns = 0;
		time->beyond_ns = 0;
		time->expelled_ns = 0;
	}
	if (load) {
		load->running = 0;
		load->waiting = 0;
	}
	if (members)
		*members = 0;
	if (starting)
		*starting = 0;
}

/* Also when the kernel has ended it, and it is attached again: apps are there then. */
s32 SEC("struct_ops.s/init") BPF_PROG(syrup_init)
{
	u32 slot, queue, cpu, zero = 0;
	struct tick *tick;
	s32 err;

	syrup_waiting = 0;
	has_ended = 0;
	bpf_for(cpu, 0, nr_cpus()) {
		struct syrup_running *on = running_on(cpu);

		if (on)
			__builtin_memset(on, 0, sizeof(*on));
	}
	bpf_for(slot, 0, SYRUP_MAX_APPS) {
		struct syrup_scx_app *app = app_of(slot);

		begin_slot(slot);
		if (app && app->cores) {
			err = create_cores(slot, nr_cpus());
			if (err)
				return err;
		}
		bpf_for(queue, 0, SYRUP_MAX_QUEUES) {
			err = scx_bpf_create_dsq(queue_id(slot, queue), -1);
			if (err)
				return err;
		}
	}
	tick = bpf_map_lookup_elem(&syrup_tick, &zero);
	if (!tick)
		return -2;
	err = bpf_timer_init(&tick->timer, &syrup_tick, CLOCK_MONOTONIC);
	if (err && err != -16) /* EBUSY: it is there */
		return err;
	err = bpf_timer_set_callback(&tick->timer, on_tick);
	if (err)
		return err;
	return bpf_timer_start(&tick->timer, 100 * NSEC_PER_MSEC, 0);
}

void SEC("struct_ops/exit") BPF_PROG(syrup_exit_op, struct scx_exit_info *info)
{
	struct syrup_scx_exit *out;
	u32 zero = 0;

	has_ended = 1;
	out = bpf_map_lookup_elem(&syrup_exit, &zero);
	if (!out)
		return;
	bpf_probe_read_kernel_str(out->reason, sizeof(out->reason), info->reason);
	bpf_probe_read_kernel_str(out->message, sizeof(out->message), info->msg);
	out->exit_code = info->exit_code;
	out->kind = info->kind;
}

/* Run by the loader for an app whose executors are cores, before its threads come. */
SEC("syscall") int syrup_make_cores(struct syrup_scx_make_cores *args)
{
	if (args->slot >= SYRUP_MAX_APPS)
		return -22;
	return create_cores(args->slot, args->nr_cpus);
}

/* Run by the loader before it registers a thread: enum syrup_scx_room. */
SEC("syscall") int syrup_has_room(struct syrup_scx_has_room *args)
{
	return room_in(args->slot);
}

/*
 * Run by the loader when a thread is about to enter the class: what it is to be there. It becomes
 * that when it enters (join()), under the lock of its run queue; of one that is in the class
 * already nothing changes (EBUSY). Slot 0 takes back what was asked for.
 */
SEC("syscall") int syrup_register(struct syrup_scx_register *args)
{
	struct task_struct *p = bpf_task_from_vpid(args->tid);
	u32 none = 0, policy, priority;
	struct syrup_membership *m;
	struct syrup_scx_thread *t;
	s32 err = 0;

	if (!p)
		return -3; /* ESRCH */
	/* A leader that has ended, and waits for its threads, has an id, and never enters. */
	if (p->exit_state && args->slot) {
		err = -3;
		goto out;
	}
	m = args->slot ? make_member(p) : membership_of(p);
	t = thread_of(p);
	if (!m || !t) {
		err = args->slot ? -12 /* ENOMEM */ : 0;
		goto out;
	}
	__sync_lock_test_and_set(&m->asked_ns, 0);
	if (!args->slot)
		goto out;
	/* What it is to be again one day: read once, for somebody may be changing it. */
	policy = READ_ONCE(p->policy);
	priority = p->rt_priority;
	err = -16; /* EBUSY */
	if (policy == SCHED_EXT)
		goto out;
	if ((policy != SCHED_FIFO && policy != SCHED_RR) || !priority) {
		priority = 0;
		if (policy == SCHED_FIFO || policy == SCHED_RR)
			policy = 0;
	}
	/* Has just been made: a thread of nobody has no index. */
	if (!t->slot)
		__sync_val_compare_and_swap(&t->index, none, SYRUP_INDEX_NONE);
	m->asked_slot = args->slot;
	m->asked_generation = args->generation;
	m->asked_index = args->index;
	m->was_policy = policy;
	m->was_priority = priority;
	__sync_lock_test_and_set(&m->asked_ns, bpf_ktime_get_ns());
	err = 0;
	/* It may have entered meanwhile, as what it was. */
	if (READ_ONCE(p->policy) == SCHED_EXT) {
		__sync_lock_test_and_set(&m->asked_ns, 0);
		err = -16;
	}
out:
	bpf_task_release(p);
	return err;
}

/*
 * Run by the loader when a thread is in the class: gives it an index, whoever had that. EBUSY: it
 * is not, or is another app's.
 */
SEC("syscall") int syrup_set_index(struct syrup_scx_set_index *args)
{
	struct task_struct *p = bpf_task_from_vpid(args->tid);
	struct syrup_index key = {
		.slot = args->slot, .generation = args->generation, .index = args->index};
	struct syrup_membership *m;
	struct syrup_scx_thread *t;
	s32 err = -16;

	if (!p)
		return -3; /* ESRCH */
	t = thread_of(p);
	m = membership_of(p);
	if (t && m && t->slot == args->slot && t->generation == args->generation)
		err = give_to(p, t, m, &key, args->by_force);
	bpf_task_release(p);
	return err;
}

/* Run by the loader before it registers a thread that has no index. */
SEC("syscall") int syrup_free_index(struct syrup_scx_free_index *args)
{
	u32 slot = args->slot, from, times, i;
	struct syrup_free *free = bpf_map_lookup_elem(&syrup_free, &slot);
	struct syrup_scx_app *app = app_of(slot);
	struct syrup_index key = {};

	if (!free || !app)
		return -22; /* EINVAL */
	from = READ_ONCE(free->lowest);
	times = __sync_fetch_and_add(&free->times, 0);
	key.slot = slot;
	key.generation = app->generation;
	key.index = from;
	/* There cannot be more than that which are taken. */
	bpf_for(i, 0, SYRUP_SCX_INDICES) {
		if (!bpf_map_lookup_elem(&syrup_indices, &key))
			break;
		key.index++;
	}
	args->index = key.index;
	__sync_val_compare_and_swap(&free->lowest, from, key.index);
	/* One that was given back meanwhile may be below. */
	if (__sync_fetch_and_add(&free->times, 0) != times)
		lower_free(free, from);
	return 0;
}

/*
 * SCX_OPS_ENQ_LAST: a thread outside its app's cores does not go on there just because
 * nothing else was chosen. SCX_OPS_ENQ_EXITING: one that exits, which takes seconds where
 * much memory is freed, has no more than its app's share. The built-in idle tracking stays
 * on beside update_idle.
 */
SEC(".struct_ops.link")
struct sched_ext_ops syrup = {
	.init_task = (void *)syrup_init_task,
	.enable = (void *)syrup_enable,
	.disable = (void *)syrup_disable,
	.exit_task = (void *)syrup_exit_task,
	.select_cpu = (void *)syrup_select_cpu,
	.enqueue = (void *)syrup_enqueue_op,
	.dispatch = (void *)syrup_dispatch,
	.running = (void *)syrup_running_op,
	.stopping = (void *)syrup_stopping,
	.quiescent = (void *)syrup_quiescent,
	.yield = (void *)syrup_yield,
	.update_idle = (void *)syrup_update_idle,
	.cpu_release = (void *)syrup_cpu_release,
	.cpu_online = (void *)syrup_cpu_online,
	.cpu_offline = (void *)syrup_cpu_offline,
	.init = (void *)syrup_init,
	.exit = (void *)syrup_exit_op,
	.flags = SCX_OPS_SWITCH_PARTIAL | SCX_OPS_ENQ_LAST | SCX_OPS_ENQ_EXITING |
		 SCX_OPS_ENQ_MIGRATION_DISABLED | SCX_OPS_KEEP_BUILTIN_IDLE,
	.timeout_ms = SYRUP_SCX_WATCHDOG_MS,
	.name = "syrup",
};
