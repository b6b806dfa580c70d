// SPDX-License-Identifier: Apache-2.0
plugins {
    // 8.5.1 is the first that lays native libraries out for pages of 16 KB
    id("com.android.application") version "8.7.3" apply false
    id("com.android.library") version "8.7.3" apply false
    id("org.jetbrains.kotlin.android") version "2.0.21" apply false
}
