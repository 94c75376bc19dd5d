#!/bin/sh
# Signs a program for macOS with the entitlement that Hypervisor.framework asks for. To be run on a Mac.
#
#   packaging/macos/sign.sh PROGRAM [IDENTITY]
#
# Without an identity the signature is ad hoc ("-"): good on the Mac that made it. For other people's Macs take a
# "Developer ID Application: NAME (TEAM)" from `security find-identity -v -p codesigning`, and have the result notarized.
set -eu
program=${1:?usage: $0 PROGRAM [IDENTITY]}
identity=${2:--}
entitlements=$(dirname "$0")/servin.entitlements

[ "$(uname -s)" = Darwin ] || { echo "$0: codesign is a program of macOS; run this on a Mac" >&2; exit 1; }
[ -f "$program" ] || { echo "$0: there is no $program; build it with cargo build --release -p servin" >&2; exit 1; }
# The hardened runtime is what notarization wants; an ad hoc signature does without.
runtime=
[ "$identity" = - ] || runtime='--options runtime --timestamp'
# shellcheck disable=SC2086
codesign --force $runtime --sign "$identity" --entitlements "$entitlements" "$program"
codesign --verify --strict "$program"
if codesign -d --entitlements - "$program" 2>/dev/null | grep -q com.apple.security.hypervisor; then
  echo "$program: signed, with the hypervisor entitlement"
else
  echo "$0: the signature of $program has no hypervisor entitlement" >&2
  exit 1
fi
