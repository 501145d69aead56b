/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the root scheduler share, and policies do not. */
#ifndef SYRUP_SCX_ROOT_BPF_H
#define SYRUP_SCX_ROOT_BPF_H

#include "shared.bpf.h"

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

static __always_inline struct syrup_scx_time *time_of(u32 slot)
{
	return bpf_map_lookup_elem(&syrup_times, &slot);
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

/* Without branches: the verifier would follow each of them in every round of a loop. */
static __always_inline u32 lowest_bit(u64 bits)
{
	u64 below = (bits & -bits) - 1; /* as many ones as there are zeros below the bit */

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

#endif /* SYRUP_SCX_ROOT_BPF_H */
