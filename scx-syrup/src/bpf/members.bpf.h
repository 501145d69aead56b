/* SPDX-License-Identifier: GPL-2.0-only */
/* Which threads of an app are in the class, how many may be, and under which index each is. */
#ifndef SYRUP_SCX_MEMBERS_BPF_H
#define SYRUP_SCX_MEMBERS_BPF_H

#include "root.bpf.h"

/*
 * Threads of each app that are SCHED_EXT now, counted where they enter and leave
 * the class, so that nobody who asks has to look at every thread of the machine.
 * The loader never changes the slot of a thread while it is in the class.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, __s64);
} syrup_members SEC(".maps");

/* Those being forked: they enter the class soon, and nobody sees them yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, __s64);
} syrup_starting SEC(".maps");

/* The slot in whose `syrup_starting` a thread is counted. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} syrup_starts_in SEC(".maps");

/*
 * Who has which index: entered when a thread of the class takes it, removed when it leaves the
 * class or loses it. Whoever takes an index out of the thread's storage, which one does, removes
 * the entry.
 */
struct syrup_index {
	u32 slot;
	u32 generation;
	u32 index;
};

struct syrup_holder {
	u64 task; /* its address, to be compared: exec changes the id of a thread */
	s32 tid;
	s32 tgid;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SYRUP_SCX_INDICES);
	__type(key, struct syrup_index);
	__type(value, struct syrup_holder);
} syrup_indices SEC(".maps");

/* So that a free index is found without a look at all that are taken. */
struct syrup_free {
	u32 lowest; /* the app's threads have all below it */
	u32 times;  /* that one was given back */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SYRUP_MAX_APPS);
	__type(key, __u32);
	__type(value, struct syrup_free);
} syrup_free SEC(".maps");

static __always_inline void add_to_slot(void *counts, u32 slot, s64 change)
{
	s64 *count = bpf_map_lookup_elem(counts, &slot);

	if (count)
		__sync_fetch_and_add(count, change);
}

/* Threads of the slot that are in the class, or will be. */
static __always_inline s64 members_of(u32 slot)
{
	s64 *members = bpf_map_lookup_elem(&syrup_members, &slot);
	s64 *starting = bpf_map_lookup_elem(&syrup_starting, &slot);

	return members && starting ? *members + *starting : 0;
}

/*
 * May the app have another thread in the class? On several CPUs at once a few more come than
 * it may have.
 */
__noinline int has_room(u32 slot)
{
	struct syrup_scx_app *app = app_of(slot);
	s64 of_user = 0;
	u32 i;

	if (!app)
		return 0;
	bpf_for(i, 1, SYRUP_MAX_APPS) {
		struct syrup_scx_app *other = app_of(i);

		if (other && other->in_use && other->user == app->user)
			of_user += members_of(i);
	}
	return members_of(slot) < app->most_threads && of_user < app->most_threads_of_user;
}

static __always_inline void count_refused(u32 slot)
{
	struct syrup_scx_time *time = time_of(slot);

	if (!time)
		return;
	__sync_fetch_and_add(&time->refused, 1);
	time->refused_ns = bpf_ktime_get_ns();
}

/*
 * The scheduler is attached to what runs already. For the first time that is nobody's. When it
 * was ended, and is put back, it is threads that it had, whose wait begins anew, and what they
 * started meanwhile, which is their app's as well.
 */
static __always_inline s32 joins_again(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p), *leader;
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);
	u32 slot = 0, generation = 0;

	if (starts_in)
		*starts_in = 0;
	if (t) {
		t->waits_in = 0;
		t->state = 0;
		t->runnable_at_ns = 0;
		if (p->policy == SCHED_EXT)
			t->entered = 0;
		return 0;
	}
	if (p->policy != SCHED_EXT)
		return 0;
	bpf_rcu_read_lock();
	leader = thread_of(p->group_leader);
	if (leader) {
		slot = leader->slot;
		generation = leader->generation;
	}
	bpf_rcu_read_unlock();
	if (!slot)
		return 0;
	t = bpf_task_storage_get(&syrup_threads, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -12;
	t->slot = slot;
	t->generation = generation;
	t->index = SYRUP_INDEX_NONE;
	t->claim = SYRUP_INDEX_NONE;
	return 0;
}

/* Has entered the class, or was not forked after all. */
static __always_inline void has_started(struct task_struct *p)
{
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);

	if (!starts_in || !*starts_in)
		return;
	add_to_slot(&syrup_starting, *starts_in, -1);
	*starts_in = 0;
}

static __always_inline void count_member(struct task_struct *p, s64 change)
{
	struct syrup_scx_thread *t = thread_of(p);
	u32 slot = t ? t->slot : 0;
	struct syrup_scx_app *app = app_of(slot);

	/* Also while its app is going, so that it is counted out where it was counted in. */
	if (!t || !app || app->generation != t->generation)
		slot = 0;
	add_to_slot(&syrup_members, slot, change);
}

/*
 * Nobody asked for one that comes by itself: it was registered once and left the class, or a
 * thread that was out of it has forked it. Beyond what its app may have it is nobody's.
 */
static __always_inline void comes_by_itself(struct task_struct *p)
{
	u32 *starts_in = bpf_task_storage_get(&syrup_starts_in, p, NULL, 0);
	struct syrup_scx_thread *t = thread_of(p);
	u32 slot = slot_of(t);

	if (!t)
		return;
	/* Whoever took it out of the class has decided what it is otherwise. */
	if (t->entered) {
		t->was_policy = 0;
		t->was_priority = 0;
	}
	t->entered = 1;
	if (!slot || (starts_in && *starts_in) || has_room(slot))
		return;
	count_refused(slot);
	t->slot = 0;
}

/* From where on a free one is looked for. */
static __always_inline void lower_free(struct syrup_free *free, u32 index)
{
	u32 i;

	bpf_for(i, 0, 8) {
		u32 lowest = READ_ONCE(free->lowest);

		if (lowest <= index ||
		    __sync_val_compare_and_swap(&free->lowest, lowest, index) == lowest)
			return;
	}
	/* So many at once: none is below that. */
	__sync_lock_test_and_set(&free->lowest, 0);
}

static __always_inline void remove_index(const struct syrup_index *key, struct task_struct *p)
{
	struct syrup_holder *holder = bpf_map_lookup_elem(&syrup_indices, key);
	struct syrup_scx_app *app = app_of(key->slot);
	u32 slot = key->slot;
	struct syrup_free *free = bpf_map_lookup_elem(&syrup_free, &slot);

	if (holder && holder->task == (u64)p)
		bpf_map_delete_elem(&syrup_indices, key);
	if (!free || !app || app->generation != key->generation)
		return;
	__sync_fetch_and_add(&free->times, 1);
	lower_free(free, key->index);
}

static __always_inline long enter_index(const struct syrup_index *key, struct task_struct *p,
					u64 flags)
{
	struct syrup_holder holder = {.task = (u64)p, .tid = p->pid, .tgid = p->tgid};

	return bpf_map_update_elem(&syrup_indices, key, &holder, flags);
}

/* Of one that enters the class: another's index is not taken from it here. */
static __always_inline void take_claim(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_index key = {};

	if (!t || !slot_of(t) || t->claim == SYRUP_INDEX_NONE)
		return;
	key.slot = t->slot;
	key.generation = t->generation;
	key.index = t->claim;
	if (!enter_index(&key, p, BPF_NOEXIST))
		t->index = key.index;
}

/* Did this take the index out of the thread's storage? */
static __always_inline bool lose_index(struct syrup_scx_thread *t, u32 index)
{
	return __sync_val_compare_and_swap(&t->index, index, SYRUP_INDEX_NONE) == index;
}

/* Of one that leaves the class: it claims the index when it comes again. */
static __always_inline void give_index(struct task_struct *p)
{
	struct syrup_scx_thread *t = thread_of(p);
	struct syrup_index key = {};

	if (!t || t->index == SYRUP_INDEX_NONE)
		return;
	key.slot = t->slot;
	key.generation = t->generation;
	key.index = t->index;
	if (lose_index(t, key.index))
		remove_index(&key, p);
}

/*
 * Takes an index out of the storage of the thread with this id, if that one has it. Returns
 * whether somebody else is just doing that, who removes the entry then.
 */
static __always_inline bool is_just_lost(s32 tid, const struct syrup_index *key, bool *is_theirs)
{
	struct task_struct *p = bpf_task_from_pid(tid);
	struct syrup_scx_thread *t;
	bool lost = false;

	if (!p)
		return false;
	t = thread_of(p);
	if (t && t->slot == key->slot && t->generation == key->generation &&
	    t->claim == key->index) {
		*is_theirs = true;
		if (lose_index(t, key->index))
			t->claim = SYRUP_INDEX_NONE;
		else
			lost = true;
	}
	bpf_task_release(p);
	return lost;
}

/* Gives a thread of the class an index, which whoever has it loses; 0 or an error. */
static __always_inline s32 give_to(struct task_struct *p, struct syrup_scx_thread *t,
				   struct syrup_index *key)
{
	struct syrup_holder *holder = bpf_map_lookup_elem(&syrup_indices, key);
	u32 index = key->index, had;
	bool is_theirs = false;
	s32 err;

	if (holder && holder->task == (u64)p)
		return 0;
	if (holder) {
		s32 tid = holder->tid, tgid = holder->tgid;

		if (is_just_lost(tid, key, &is_theirs))
			return -11; /* EAGAIN */
		/* The thread that called exec has its leader's id since. */
		if (!is_theirs && is_just_lost(tgid, key, &is_theirs))
			return -11;
	}
	err = enter_index(key, p, BPF_ANY);
	if (err)
		return err;
	t->claim = index;
	had = __sync_lock_test_and_set(&t->index, index);
	if (had != SYRUP_INDEX_NONE && had != index) {
		key->index = had;
		remove_index(key, p);
		key->index = index;
	}
	/* It may have left the class before it had this one to give back. */
	if ((p->policy != SCHED_EXT || p->flags & PF_EXITING) && lose_index(t, index)) {
		remove_index(key, p);
		return -3; /* ESRCH */
	}
	return 0;
}

#endif /* SYRUP_SCX_MEMBERS_BPF_H */
