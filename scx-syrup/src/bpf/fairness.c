/* SPDX-License-Identifier: GPL-2.0-only */
/* fairness.h for native tests. */
#include <stddef.h>

#include "fairness.h"

const size_t syrup_standings_size = sizeof(struct syrup_scx_standings);

__u64 syrup_fair_standing(const struct syrup_scx_standings *cpu, __u32 slot, __u64 vtime_ns,
			  __u32 weight, __u32 running)
{
	return fair_standing(cpu, slot, vtime_ns, weight, running);
}

void syrup_fair_stand(struct syrup_scx_standings *cpu, __u32 slot, __u64 vtime_ns, __u64 standing)
{
	fair_stand(cpu, slot, vtime_ns, standing);
}

void syrup_fair_choose(struct syrup_scx_standings *cpu, __u64 standing, __u32 weight)
{
	fair_choose(cpu, standing, weight);
}

__s32 syrup_fair_is_better(struct syrup_scx_standings *there, struct syrup_scx_standings *here,
			   __u64 now_ns)
{
	return fair_is_better(there, here, now_ns);
}
