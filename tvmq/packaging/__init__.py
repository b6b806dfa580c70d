# SPDX-License-Identifier: Apache-2.0
"""What an application developer takes: a tarball for Linux, a Gradle project for Android.

``source`` checks the artifact, ``linux`` and ``android`` write the packages from the files beside them.
``jni`` is the glue between Java and the runtime.
"""
