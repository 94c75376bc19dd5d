/* SPDX-License-Identifier: GPL-2.0 */
/* Jumps from user mode to the kernel's syscall entry, as SYSCALL does on a host that cannot switch to CPL 0.
 * With servin.pvm that is a system call (getppid, then exit with 42); without it the jump is a SIGSEGV.
 * build: gcc -nostdlib -static -DENTRY=0x... */
.globl _start
.macro land
	lea 1f(%rip), %rcx
	pushfq
	pop %r11
	mov $ENTRY, %rdx
	jmp *%rdx
1:
.endm
_start:
	mov $110, %eax		/* getppid */
	land
	test %rax, %rax
	jle 2f
	mov %rax, %rbx
	mov $110, %eax		/* R11 asks for IOPL 3 and no interrupts; neither may be had */
	lea 3f(%rip), %rcx
	mov $0x3046, %r11d
	mov $ENTRY, %rdx
	jmp *%rdx
3:	cmp %rax, %rbx
	jne 2f
	pushfq
	pop %rax
	and $0x3200, %eax	/* IOPL and IF */
	cmp $0x200, %eax
	jne 2f
	mov $42, %edi
	jmp 4f
2:	mov $1, %edi
4:	mov $60, %eax		/* exit */
	land
	hlt
