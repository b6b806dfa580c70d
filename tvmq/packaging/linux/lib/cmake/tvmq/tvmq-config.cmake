# SPDX-License-Identifier: Apache-2.0
# Targets: tvmq::tvmq (shared) and tvmq::tvmq_static.
get_filename_component(_tvmq_root "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET tvmq::tvmq)
  add_library(tvmq::tvmq SHARED IMPORTED)
  set_target_properties(tvmq::tvmq PROPERTIES
    IMPORTED_LOCATION "${_tvmq_root}/lib/libtvmq.so"
    IMPORTED_SONAME libtvmq.so
    INTERFACE_INCLUDE_DIRECTORIES "${_tvmq_root}/include")
  add_library(tvmq::tvmq_static STATIC IMPORTED)
  set_target_properties(tvmq::tvmq_static PROPERTIES
    IMPORTED_LOCATION "${_tvmq_root}/lib/libtvmq.a"
    INTERFACE_LINK_LIBRARIES "m;pthread;dl"
    INTERFACE_INCLUDE_DIRECTORIES "${_tvmq_root}/include")
endif()
