// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Reads behind the thread it was given, so that the verifier refuses it.
 */
#include <syrup/thread.h>

__s32 schedule(struct syrup_thread *t)
{
	return ((__u32 *)t)[16];
}
