include $(sort $(wildcard $(BR2_EXTERNAL_CHITON_PATH)/package/*/*.mk))
