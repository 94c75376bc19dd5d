/* Makes a virtual machine and runs a few instructions in it: proof that the nested host's /dev/kvm works.
 * The guest adds two numbers, writes the sum to a port, and halts. Prints the sum and the steps' time. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static const unsigned char code[] = {
	0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
	0x00, 0xd8,       /* add al, bl */
	0xee,             /* out dx, al */
	0xf4,             /* hlt */
};

static int fail(const char *what) { perror(what); return 1; }

int main(void)
{
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) return fail("/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != 12) return fail("KVM_GET_API_VERSION is not 12");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) return fail("KVM_CREATE_VM");
	void *memory = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) return fail("mmap");
	memcpy(memory, code, sizeof code);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000, .memory_size = 4096, .userspace_addr = (unsigned long)memory };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) return fail("KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0) return fail("KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED) return fail("mmap of the run page");
	struct kvm_sregs sregs;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0) return fail("KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0) return fail("KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = 0x1000, .rax = 40, .rbx = 2, .rflags = 2 };
	if (ioctl(vcpu, KVM_SET_REGS, &regs) < 0) return fail("KVM_SET_REGS");
	int sum = -1;
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) return fail("KVM_RUN");
		if (run->exit_reason == KVM_EXIT_HLT) break;
		if (run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
			return 1;
		}
		sum = *((unsigned char *)run + run->io.data_offset);
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	long ns = (to.tv_sec - from.tv_sec) * 1000000000L + (to.tv_nsec - from.tv_nsec);
	printf("guest says %d after %ld ns\n", sum, ns);
	return sum == 42 ? 0 : 1;
}
